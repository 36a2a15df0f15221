# docker build --build-arg MLX=cpu|cuda|cuda13 . — see docs/deployment.md. Written, not built, where lib_mlx was developed.
FROM python:3.12-slim AS build
ARG MLX=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m venv /opt/lib-mlx && /opt/lib-mlx/bin/pip install --no-cache-dir ".[${MLX},vision]"

FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 lib-mlx
COPY --from=build /opt/lib-mlx /opt/lib-mlx
ENV PATH=/opt/lib-mlx/bin:$PATH LIB_MLX_DATA_DIR=/models PYTHONUNBUFFERED=1
USER lib-mlx
WORKDIR /home/lib-mlx
EXPOSE 8642
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8642/health', timeout=3)"]
# The ExecStart that `lib-mlx service install` writes, without --service: a container's state is its own.
ENTRYPOINT ["python", "-m", "lib_mlx", "serve", "--host", "0.0.0.0", "--port", "8642"]
