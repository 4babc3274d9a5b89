"""The model of a pipeline: what builds it, where its weights are, what goes in, and on what it is measured."""

from typing import Annotated, Literal

from splitplane.api.fields import Model, between, rule, rules, text
from splitplane.api.pods import Env, LocalReference, PullSecrets, VolumeMounts, Volumes
from splitplane.api.tensors import ModelInputs
from splitplane.domain.calibrations import Metric

_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
_FACTORY = text(
    f"^{_IDENTIFIER}([.]{_IDENTIFIER})*:{_IDENTIFIER}$",
    "must be module:callable, such as pitch_tracker:build",
    longest=253,
)
_PART = "([^/.?#][^/?#]*|[.][^/.?#][^/?#]*|[.][.][^/?#]+)"
_HOST = "[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?"
_IMAGE_PART = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_TAG = "[A-Za-z0-9_][-A-Za-z0-9_.]{0,127}"
_DIGEST = "[A-Za-z][A-Za-z0-9]*:[0-9a-fA-F]{32,128}"
_REGISTRY = f"{_HOST}([.]{_HOST})*(:[0-9]+)?"
_QUERY = "[-A-Za-z0-9._~!$&()*+,;=:@/?%]+"
_URI = text(
    f"^((file://|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?|s3://[a-z0-9][-a-z0-9.]*[a-z0-9])(/{_PART})+"
    f"|https?://{_REGISTRY}(/{_PART})+([?]{_QUERY})?"
    f"|oci://{_REGISTRY}(/{_IMAGE_PART})+(:{_TAG}|@{_DIGEST}))$",
    "must be pvc://<claim>/<path>, file:///<path in the runtime image or a mounted volume>, https://<host>/<path>,"
    " s3://<bucket>/<key> or oci://<registry>/<repository>:<tag>, without . or .. in it",
    longest=4096,
)
_LOCAL_URI = text(
    f"^(file://|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(/{_PART})+$",
    "must be pvc://<claim>/<path>, or file:///<path in the runtime image or a mounted volume>, without . or .. in it",
    longest=1024,
)
_SHA256 = text(
    r"^[0-9a-f]{64}$", "must be the file's SHA-256 as 64 lower-case hexadecimal digits (see sha256sum)", longest=64
)
_IMAGE = text(
    f"^({_REGISTRY}/)?{_IMAGE_PART}(/{_IMAGE_PART})*(:{_TAG})?(@{_DIGEST})?$",
    "must be an image reference such as repository/name:tag, the name in lower-case letters",
    longest=512,
)


class Weights(Model):
    """The model's trained weights: a safetensors file, or a torch checkpoint that holds tensors alone."""

    model_config = rules(
        rule(
            "!has(self.secretRef) || self.uri.matches('^(https?|s3|oci)://')",
            "only used for https://, s3:// and oci://; remove it",
            field=".secretRef",
        ),
    )

    uri: Annotated[str, *_URI]
    """Where the file is: ``pvc://<claim>/<path>``, ``file:///<path>``, or, for each pod to download,
    ``https://<host>/<path>``, ``s3://<bucket>/<key>``, ``oci://<registry>/<repository>:<tag>``. A signed address
    (``https://<host>/<path>?X-Amz-Signature=...``) is told without its ``?...`` wherever it is told."""
    sha256: Annotated[str, *_SHA256]
    """SHA-256 of the whole file; pods refuse any other. Of an OCI artifact, the digest of the file's layer."""
    secret_ref: LocalReference | None = None
    """A Secret with what the download needs: ``token``, or ``username`` and ``password``; ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``; ``.dockerconfigjson``;
    ``ca.crt``. It is mounted on every tier that holds a part of the model: let it permit reading, and nothing else."""


class CalibrationInputs(Model):
    """Real inputs of the model, on which a job of the operator measures accuracy loss and leak, where limits on these
    are set: for the cuts and codecs that a plan could use, once for each model. They are read on trusted tiers only.
    What ``volumes`` or the image hold is on all tiers: keep them on a claim that nothing else names."""

    uri: Annotated[str, *_LOCAL_URI]
    """A ``.safetensors`` or ``.npz`` file with a tensor ``[samples, ...]`` for each input, and ``labels`` (the right
    classes or numbers) if known."""
    sha256: Annotated[str, *_SHA256]
    """SHA-256 of the file; the job refuses any other."""
    metric: Metric | None = None
    """What accuracy loss is judged by: ``top1`` or ``top5`` (share of right classes), ``r2`` (coefficient of
    determination), or ``cosine``; against the labels where there are any (but for cosine), else against the unsplit
    model. Default: ``top1`` where the labels are whole numbers, ``r2`` where they are others; without labels the worse
    of top1 and cosine where an output is ``[n, k]``, r2 where it is one number, else cosine."""
    budget_core_seconds: Annotated[int, between(10, 1_000_000)] = 1200
    """What measuring may take: ten minutes of two cores, unless told otherwise."""


class ModelSpec(Model):
    """The model, and the pods' surroundings that it needs."""

    model_config = rules(
        rule(
            "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes)"
            " && self.volumes.exists(v, v.name == m.name))",
            "every mount must name one of spec.model.volumes",
            field=".volumeMounts",
        ),
    )

    factory: Annotated[str, *_FACTORY]
    """``module:callable`` that returns the ``torch.nn.Module``, importable in the runtime image or a mounted volume."""
    image: Annotated[str, *_IMAGE] | None = None
    """Image of the pods that hold the model. Default: the operator's runtime image."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: PullSecrets = ()
    weights: Weights
    inputs: ModelInputs
    """The model's inputs in the order of its arguments; the first dimension is the batch, -1."""
    calibration: CalibrationInputs | None = None
    """Default: accuracy loss and leak are measured by nobody but ``splitplane model accuracy`` and ``leak``."""
    env: Env = ()
    volumes: Volumes = ()
    volume_mounts: VolumeMounts = ()
