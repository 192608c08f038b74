# The images for each architecture, with their SBOM and provenance (docker buildx 0.12 or later):
#   REGISTRY=registry.example.com/platform/ docker buildx bake -f docker/bake.hcl --push
# `make release` runs it, and prints the digest. Without --push or a file as output, images of several architectures stay
# in the cache of the builder.

variable "REGISTRY" {
  default = ""
}

# The version of pyproject.toml (a test compares them).
variable "VERSION" {
  default = "0.2.0"
}

# The commit.
variable "REVISION" {
  default = "unknown"
}

# `make release` adds the digest where it can ask a registry.
variable "PYTHON_IMAGE" {
  default = "python:3.12-slim"
}

group "default" {
  targets = ["tokenpool"]
}

# Sidecar, coordinator, injector, loadgen.
target "tokenpool" {
  context    = "."
  dockerfile = "docker/Dockerfile"
  platforms  = ["linux/amd64", "linux/arm64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
    VERSION      = VERSION
    REVISION     = REVISION
  }
  tags   = ["${REGISTRY}tokenpool:${VERSION}"]
  attest = ["type=sbom", "type=provenance,mode=max"]
}

# vLLM on the CPU, for trials. Its third party builds for amd64 only.
target "engine" {
  context    = "."
  dockerfile = "docker/engine.Dockerfile"
  platforms  = ["linux/amd64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
  }
  tags   = ["${REGISTRY}tokenpool-engine:${VERSION}"]
  attest = ["type=sbom", "type=provenance,mode=max"]
}
