# docker build -t mot .
# docker run -p 127.0.0.1:8000:8000 -v "$PWD/outputs/run:/model:ro" -e MOT_API_KEY="$(openssl rand -hex 24)" mot
FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mot mot
# The CPU build. For a GPU leave the index out and start from an image with CUDA.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt ".[serve]" \
    && useradd --no-create-home --uid 10001 mot
USER mot
ENV HF_HUB_OFFLINE=1 HOME=/tmp
EXPOSE 8000
# Longer than --drain_seconds, or Docker kills requests that still finish: docker stop --time 40
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["mot", "serve", "--model", "/model", "--host", "0.0.0.0"]
