# imagenet-serve in a container: numeric user, read-only root, no shell between PID 1 and SIGTERM.
#
#   docker build -t imagenet-serve .                                    for the CPU, and any weights
#   docker build -t imagenet-serve:vgg16 --build-arg WEIGHTS=vgg16 .    for the CPU, this model, without torch
#   docker build -t imagenet-serve:mine --build-arg WEIGHTS=deploy/weights/mine.pth .     the same with a model of yours
#   docker build -t imagenet-serve:gpu --target gpu .                   for NVIDIA's container runtime
#   docker run --read-only --tmpfs /tmp -v weights:/weights -p 8000:8000 imagenet-serve
#
# Build arguments
#   TORCH_INDEX_URL   a package index with the build of torch you want (PyTorch's installation page
#                     names them). Without it torch comes from PyPI, whose Linux build carries gigabytes
#                     of CUDA: right for `gpu`, correct but far too large for `cpu`.
#   BASE_IMAGE        a Debian with Python 3.11 or newer as `python`
#   WEIGHTS           what is baked in, so that a start needs no network. For `cpu` a variant (its published weights) or
#                     anything else that the setting weights takes, converted, which needs no torch in the image: a
#                     file or folder in deploy/weights, hf://owner/repo, demo. For `gpu` a variant
#   LABELS            with WEIGHTS, for `cpu`: a file in deploy/weights with the classes' names, one a line
#   APT_PACKAGES      Debian packages for the final image; "g++ libc6-dev" is what runtime=compile needs on the CPU
#   GPU_APT_PACKAGES  the same for `gpu` alone, which has the compiler that Triton needs unless this says otherwise
#   VERSION REVISION CREATED   for the OCI labels
ARG BASE_IMAGE=python:3.12-slim
ARG WEIGHTS=""

FROM ${BASE_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY deploy/requirements deploy/requirements
# Without pip: the environment is copied into the final image, and nothing installs there.
RUN python -m venv --without-pip /opt/venv \
    && pip install --require-hashes --target /opt/build -r deploy/requirements/build.txt
# Without the code: this becomes a layer of its own, nine tenths of the image, that a new version of the service leaves
# as it is on every node.
# From another index than PyPI the wheels are others, so that the hashes for torch cannot hold; its
# versions do (2.13.0 also matches 2.13.0+cpu, which pip prefers where it sees both).
ARG TORCH_INDEX_URL=""
RUN if [ -n "${TORCH_INDEX_URL}" ]; then \
        pip --python /opt/venv/bin/python install --require-hashes -r deploy/requirements/cpu.txt \
        && pip --python /opt/venv/bin/python install --no-deps --extra-index-url "${TORCH_INDEX_URL}" \
            -r deploy/requirements/torch.txt; \
    else \
        pip --python /opt/venv/bin/python install --require-hashes -r deploy/requirements/gpu.txt; \
    fi

FROM dependencies AS build
COPY pyproject.toml README.md LICENSE ./
COPY labels labels
COPY samples samples
COPY service service
# Into a prefix of its own, which is laid over the environment below.
RUN PYTHONPATH=/opt/build pip wheel --no-build-isolation --no-deps --wheel-dir /opt/wheel . \
    && pip --python /opt/venv/bin/python install --no-deps --ignore-installed --prefix /opt/service /opt/wheel/*.whl

FROM build AS weights
ARG WEIGHTS=""
COPY deploy/fetch_weights.py /opt/fetch_weights.py
# From /src, where the service is importable as it lies.
RUN install -d /weights /baked/hub/checkpoints \
    && if [ -n "${WEIGHTS}" ]; then \
        PYTHONPATH=/src TORCH_HOME=/baked /opt/venv/bin/python /opt/fetch_weights.py "${WEIGHTS}"; \
    fi

FROM build AS converted
ARG WEIGHTS=""
ARG LABELS=""
COPY deploy/bake.py /opt/bake.py
COPY deploy/weights deploy/weights
# By the stage that has torch.
RUN install -d /weights /converted \
    && if [ -n "${WEIGHTS}" ]; then \
        PYTHONPATH=/src TORCH_HOME=/tmp XDG_CACHE_HOME=/tmp/cache /opt/venv/bin/python /opt/bake.py \
            /converted/model "${WEIGHTS}" ${LABELS:+--labels "${LABELS}"} \
        && chmod -R a+rX /converted; \
    fi

# What serving a converted model needs: everything but torch and what reads weights.
FROM ${BASE_IMAGE} AS serving
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY deploy/requirements/serve.txt /src/
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --require-hashes -r /src/serve.txt

FROM ${BASE_IMAGE} AS system
ARG APT_PACKAGES=""
# A numeric id above 10000 meets no user of the host; Kubernetes' runAsNonRoot needs the number.
# hadolint ignore=DL3008,SC2086
RUN groupadd --gid 10001 imagenet \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin imagenet \
    && if [ -n "${APT_PACKAGES}" ]; then \
        apt-get update && apt-get install -y --no-install-recommends ${APT_PACKAGES} \
        && rm -rf /var/lib/apt/lists/*; \
    fi
# HOME and TMPDIR: the only writable places of a read-only container are /tmp and /weights.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    TMPDIR=/tmp \
    TORCH_HOME=/weights \
    BAKED_WEIGHTS=/opt/weights \
    HF_HOME=/weights/huggingface \
    KAGGLEHUB_CACHE=/weights/kagglehub \
    XDG_CACHE_HOME=/weights/cache \
    IMAGENET_HOST=0.0.0.0 \
    IMAGENET_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# Liveness, as an orchestrator that restarts on "unhealthy" needs it; readiness is /readyz.
# 30 s: the HTTP side answers long before, while torch is still being imported.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "/opt/health.py", "/livez"]
# Exec form: the supervisor is PID 1 and gets SIGTERM itself.
ENTRYPOINT ["imagenet-serve"]
CMD ["serve"]
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="imagenet-serve" \
      org.opencontainers.image.description="ImageNet classification with a VGG or a DenseNet behind an HTTP port" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port="true"
# What GET /version and imagenet_build_info say.
ENV BUILD_REVISION="${REVISION}"

# The image that can read any weights.
FROM system AS runtime
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=build /opt/service /opt/venv
COPY --from=weights --chown=10001:10001 /weights /weights
# Beside /weights, so that a volume mounted there does not hide them.
COPY --from=weights /baked/hub/checkpoints /opt/weights
COPY deploy/health.py deploy/fetch_weights.py /opt/
ARG WEIGHTS=""
# With baked weights their variant is the default, else the service's own default.
ENV IMAGENET_MODEL=${WEIGHTS:-densenet121}

FROM runtime AS gpu
# Triton builds a launcher for each kernel at the first start, and runtime=compile whole kernels: both with the system's
# compiler and Python's headers, which a base of Debian's own Python has in python3-dev.
ARG GPU_APT_PACKAGES="g++ libc6-dev"
USER 0
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install -y --no-install-recommends ${GPU_APT_PACKAGES} \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
# NVIDIA's container runtime mounts the driver for these; CUDA itself came with torch.
# cuda and not auto: without a GPU the start fails, instead of a service that is quietly slow.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    IMAGENET_DEVICE=cuda

# The image of one converted model, 0.9 GB smaller.
FROM system AS runtime-baked
COPY --from=serving /opt/venv /opt/venv
COPY --from=build /opt/service /opt/venv
COPY --from=converted --chown=10001:10001 /weights /weights
COPY --from=converted /converted /opt
COPY deploy/health.py deploy/fetch_weights.py /opt/
# Where these are a variant's published weights, weights=pretrained of this variant is what lies there, too.
ENV IMAGENET_WEIGHTS=/opt/model \
    BAKED_MODEL=/opt/model

# The last target is what `docker build .` makes: with WEIGHTS the smaller image, else the one that reads any.
# hadolint ignore=DL3006
FROM runtime${WEIGHTS:+-baked} AS cpu
ENV IMAGENET_DEVICE=cpu
