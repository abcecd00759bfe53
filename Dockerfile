# The book on any machine with Docker; Binder and development containers start from it too.
#   docker build -t flashkat .
#   docker run --rm -it -p 8888:8888 flashkat
FROM debian:12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ git make npm python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Binder gives both; JupyterLab does not start as root.
ARG NB_USER=reader
ARG NB_UID=1000
RUN useradd --create-home --shell /bin/bash --uid "$NB_UID" "$NB_USER" && install -d -o "$NB_UID" /book

# PyTorch for CPUs; for a GPU's, which PyPI has: --build-arg PIP_EXTRA_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL PIP_NO_CACHE_DIR=1
ENV HOME=/home/$NB_USER PATH=/book/.venv/bin:$PATH

WORKDIR /book
USER $NB_UID
COPY --chown=$NB_UID . .
RUN make .venv/.ready

EXPOSE 8888
CMD ["jupyter-lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=chapters"]
