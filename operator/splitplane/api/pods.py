"""The parts of a pod that a pipeline hands through to the pods made for it, in Kubernetes' own words.

Only these volume sources are let through: a pipeline's author must not reach a node's files by way of the operator.
"""

from typing import Annotated, Literal

from splitplane.api.fields import Model, Name, Quantity, at_most, between, keyed, ordered, rule, rules, text

_ENV_NAME = text(r"^[A-Za-z_][A-Za-z0-9_]*$", "must be letters, digits and underscores, not a digit first", longest=128)
_PART = "([^/:.][^/:]*|[.][^/:.][^/:]*|[.][.][^/:]+)"
"""A part of a path, neither ``.`` nor ``..``."""
_MOUNT_PATH = text(
    f"^(/{_PART})+/?$", "must be an absolute path other than /, without a colon and without . or .. in it", longest=1024
)
_SUBDOMAIN = "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_RESOURCE = text(
    f"^(cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMGT]i|{_SUBDOMAIN}/{_WORD})$",
    "must be cpu, memory, ephemeral-storage, hugepages-<size>, or a device such as example.com/gpu",
    longest=128,
)
_LABEL = text(
    f"^({_SUBDOMAIN}/)?{_WORD}$", "must be a label's name, such as splitplane.dev/tier, without spaces", longest=316
)
_LABEL_VALUE = text(
    f"^({_WORD})?$", "must be letters, digits and inner dashes, underscores and dots", least=0, longest=63
)
_KEY = text(r"^[-._a-zA-Z0-9]+$", "must be letters, digits, dots, dashes and underscores", longest=253)
_RELATIVE = text(
    f"^{_PART}(/{_PART})*/?$", "must be a relative path, without a colon and without . or .. in it", longest=512
)
_OBJECT = text(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "must be the name of an object in this namespace", longest=253)

ObjectName = Annotated[str, *_OBJECT]
LabelName = Annotated[str, *_LABEL]
LabelValue = Annotated[str, *_LABEL_VALUE]
_Key = Annotated[str, *_KEY]
_RelativePath = Annotated[str, *_RELATIVE]


class LocalReference(Model):
    """An object of the same namespace."""

    name: ObjectName


class Toleration(Model):
    """A taint that pods of this tier tolerate."""

    model_config = rules(
        rule(
            "self.operator != 'Exists' || !has(self.value)",
            "leave value out with operator Exists, or use operator Equal",
            field=".value",
        ),
        rule(
            "has(self.key) || self.operator == 'Exists'",
            "name the taint's key, or use operator Exists to tolerate all taints",
            field=".operator",
        ),
        rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "needs effect NoExecute; leave it out otherwise",
            field=".tolerationSeconds",
        ),
    )

    key: LabelName | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, between(0, 10**9)] | None = None


ResourceList = Annotated[dict[Annotated[str, *_RESOURCE], Quantity], at_most(16)]


class Resources(Model):
    """What each replica asks for and may use at most."""

    model_config = rules(
        rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits)"
            " || !isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k]))"
            " || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
            "no request may be larger than the limit of the same name; lower it or raise the limit",
            field=".requests",
        )
    )

    requests: ResourceList | None = None
    limits: ResourceList | None = None


class KeySelector(Model):
    """A key of a ConfigMap or Secret."""

    name: ObjectName
    key: _Key
    optional: bool = False


class EnvSource(Model):
    """Where a variable's value comes from."""

    model_config = rules(
        rule(
            "has(self.configMapKeyRef) != has(self.secretKeyRef)",
            "set exactly one of configMapKeyRef and secretKeyRef",
        )
    )

    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(Model):
    """A variable of the pods that hold the model."""

    model_config = rules(
        rule("!has(self.value) || !has(self.valueFrom)", "set either value or valueFrom, not both", field=".value"),
        rule(
            "self.name != 'TMPDIR' && !self.name.startsWith('SPLITPLANE_')",
            "TMPDIR and names that start with SPLITPLANE_ are set by the operator; choose another",
            field=".name",
        ),
    )

    name: Annotated[str, *_ENV_NAME]
    value: Annotated[str, at_most(4096)] | None = None
    value_from: EnvSource | None = None


class KeyPath(Model):
    """A key, and the file that it becomes."""

    key: _Key
    path: _RelativePath


class ConfigMapVolume(Model):
    """Files from a ConfigMap."""

    name: ObjectName
    items: Annotated[tuple[KeyPath, ...], ordered(most=64)] | None = None
    optional: bool = False


class SecretVolume(Model):
    """Files from a Secret."""

    secret_name: ObjectName
    items: Annotated[tuple[KeyPath, ...], ordered(most=64)] | None = None
    optional: bool = False


class ClaimVolume(Model):
    """A PersistentVolumeClaim of the same namespace."""

    claim_name: ObjectName
    read_only: bool = True


class EmptyDirVolume(Model):
    """Scratch space that lives as long as the pod."""

    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class Volume(Model):
    """A volume of the pods that hold the model."""

    model_config = rules(
        rule(
            "[has(self.configMap), has(self.secret), has(self.persistentVolumeClaim), has(self.emptyDir)]"
            ".filter(x, x).size() == 1",
            "set exactly one of configMap, secret, persistentVolumeClaim and emptyDir",
        ),
        rule(
            "!self.name.startsWith('splitplane-')",
            "names that start with splitplane- are the operator's; choose another",
            field=".name",
        ),
    )

    name: Name
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None
    empty_dir: EmptyDirVolume | None = None


class VolumeMount(Model):
    """Where a volume appears in the pods that hold the model."""

    model_config = rules(
        rule(
            "self.mountPath != '/tmp' && self.mountPath != '/weights' && !self.mountPath.startsWith('/weights/')",
            "the operator mounts scratch space at /tmp and pvc:// weights below /weights; choose another path",
            field=".mountPath",
        )
    )

    name: Name
    mount_path: Annotated[str, *_MOUNT_PATH]
    sub_path: _RelativePath | None = None
    read_only: bool = False


Tolerations = Annotated[tuple[Toleration, ...], ordered(most=16)]
Env = Annotated[tuple[EnvVar, ...], keyed("name", most=64)]
Volumes = Annotated[tuple[Volume, ...], keyed("name", most=16)]
VolumeMounts = Annotated[tuple[VolumeMount, ...], keyed("mountPath", most=16)]
PullSecrets = Annotated[tuple[LocalReference, ...], keyed("name", most=8)]
