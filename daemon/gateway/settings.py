"""`gateway:` in hermesd.yaml, and the same fields in a file of their own (configs/env.*.yaml). Light: the daemon reads
it too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from policies.engines import Limits
from policies.fault import BadValue
from policies.quantity import parse_duration

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Backend = Literal["transformers", "exact", "llama_cpp", "mlx", "openai", "ollama"]

_DAY_MS = 86_400_000


class ServedModel(BaseModel):
    """One model of `gateway.models`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    model: str = ""
    """A folder, a GGUF file, or a name that jobs may use; of a remote backend, the name there. Without it: its own."""
    backend: Backend | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "bnb-8bit", "bnb-4bit"] | None = None
    context: Annotated[int, Field(ge=0)] = 0
    cache_mb: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    num_instances: Annotated[int, Field(ge=1, le=64)] | None = None
    max_parallel: Annotated[int, Field(ge=1, le=1024)] | None = None
    digest: str = ""
    url: str = ""
    key_file: str = ""
    type: Literal["llm", "coder", "embedding"] = "llm"
    fallback: str = ""


class EngineLimits(BaseModel):
    """What holds for all engines together; what is not written is as `policies.engines.Limits` has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    engines_max: Annotated[int, Field(ge=0)] | None = None
    memory_mb: Annotated[int, Field(ge=0)] | None = None
    waiting_max: Annotated[int, Field(ge=1)] | None = None
    overtakes_max: Annotated[int, Field(ge=0)] | None = None
    aging: str | None = None
    idle: str | None = None
    recycle_requests: Annotated[int, Field(ge=0)] | None = None

    @field_validator("aging", "idle")
    @classmethod
    def _duration(cls, text: str | None) -> str | None:
        if text is not None:
            parse_duration(text)
        return text

    def limits(self) -> Limits:
        told = self.model_dump(exclude_none=True)
        for name in ("aging", "idle"):
            if name in told:
                told[f"{name}_ms"] = parse_duration(told.pop(name))
        if "memory_mb" in told:
            told["memory_max"] = told.pop("memory_mb") << 20
        return Limits(**told)


class GatewaySettings(BaseModel):
    """Each field's default stands here and nowhere else."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    tcp: str = ""
    """HOST:PORT on loopback, beside the socket; asks for the token in gateway.token. Port 0: any."""
    backend: Backend = "transformers"
    model_name: str = ""
    """Loaded at the start."""
    num_instances: Annotated[int, Field(ge=1, le=64)] = 1
    """Engines of one model, at most."""
    max_parallel: Annotated[int, Field(ge=1, le=1024)] = 16
    """Answers that one engine works on at once."""
    cache_dir: str = ""
    """Where model folders lie, beside the home's models/."""
    use_bnb_on_cuda: bool = False
    """4-bit weights (bitsandbytes) on CUDA devices."""
    hermetic: bool = False
    """Engines without a network, and that write nowhere but to their scratch folder."""
    keep_text: str = "7d"
    """How long prompts and answers are kept in generations/, for `hermesd rerun`; none, or whole days."""
    resume: str = "5s"
    """How long an answer without a reader waits for one to come back."""
    engines: EngineLimits = EngineLimits()
    """How many engines there may be, how much they may take, and how long they stay."""
    models: dict[str, ServedModel] = {}
    """Beside those that jobs may name, or to say more of them."""

    @property
    def listens(self) -> tuple[str, int] | None:
        """Host and port, where TCP was asked for."""
        if not self.tcp:
            return None
        host, _, port = self.tcp.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def keep_days(self) -> int:
        return 0 if self.keep_text == "none" else parse_duration(self.keep_text) // _DAY_MS

    @property
    def resume_s(self) -> float:
        return parse_duration(self.resume) / 1000

    @field_validator("tcp")
    @classmethod
    def _only_this_machine(cls, tcp: str) -> str:
        host, colon, port = tcp.rpartition(":")
        if tcp and (not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535):
            raise BadValue(f"{tcp!r} is no address", "Write HOST:PORT, such as 127.0.0.1:8710")
        if tcp and host.strip("[]") not in LOOPBACK:
            raise BadValue(
                f"{host} can be reached from other machines, and there is no TLS here",
                "Use 127.0.0.1, and a proxy of your own (ssh -L, nginx) where others are to get in",
            )
        return tcp

    @field_validator("keep_text")
    @classmethod
    def _days(cls, text: str) -> str:
        if text != "none" and parse_duration(text) % _DAY_MS:
            raise BadValue(f"{text!r} is not a number of days", "Write none, or days, such as 7d")
        return text

    @field_validator("resume")
    @classmethod
    def _short(cls, text: str) -> str:
        if parse_duration(text) > 600_000:
            raise BadValue(f"{text!r} is too long to hold an engine for nobody", "Write at most 10m")
        return text
