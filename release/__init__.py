"""What users install: wheels, the image with its SBOM, the chart. ``make release`` builds them."""
