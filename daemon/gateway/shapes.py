"""What may be asked over HTTP, and what is answered. The OpenAPI description is made from these; requests are checked
against them, and a field that is not here is refused by name, never passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from daemon.gateway.refusal import Refusal
from daemon.inference.runtimes import RUNTIMES, STOPS_MAX
from daemon.inference.views import EngineView

Json = Any

S = TypeVar("S", bound=BaseModel)

PROMPTS_MAX = 64
TEXTS_MAX = 2048
_Runtime = Literal["transformers", "exact", "llama_cpp", "mlx", "openai", "ollama"]
assert set(_Runtime.__args__) == set(RUNTIMES)  # type: ignore[attr-defined]

Zero = Annotated[float, Field(ge=0, le=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[str, Field(min_length=1)] | Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(max_length=STOPS_MAX)
]  # fmt: skip


def _whole(value: Json) -> Json:
    """In JSON 2.0 is a whole number too."""
    return int(value) if type(value) is float and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), _WHOLE]
Token = Annotated[int, Field(ge=0, le=2**31 - 1), _WHOLE]
Count = Annotated[int, Field(ge=1, le=10_000_000), _WHOLE]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class TextPart(Shape):
    type: Literal["text"]
    text: str


class CalledFunction(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Json], Field(max_length=0)] | None = None
    function_call: None = None


class FunctionSpec(Shape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class Tool(Shape):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Shape):
    name: str


class NamedTool(Shape):
    type: Literal["function"]
    function: NamedFunction


class PlainText(Shape):
    type: Literal["text"]


class JsonObject(Shape):
    type: Literal["json_object"]


class NamedSchema(Shape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Json], Field(alias="schema")]
    strict: bool | None = None


class JsonSchema(Shape):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class StreamOptions(Shape):
    include_usage: bool | None = None


class Sampling(Shape):
    """What chat and plain completions share. Fields at the end are accepted only where they change nothing."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    n: Annotated[int, Field(ge=1, le=128), _WHOLE] | None = 1
    stop: Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: Seed | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    top_k: Annotated[int, Field(ge=0, le=10_000_000), _WHOLE] | None = 0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = 1.0
    priority: Annotated[int, Field(ge=-100, le=100), _WHOLE] | None = 0
    ignore_eos: bool | None = False
    frequency_penalty: Zero | None = 0
    presence_penalty: Zero | None = 0
    logit_bias: Annotated[dict[str, Json], Field(max_length=0)] | None = None


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = None
    response_format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None


class CompletionRequest(Sampling):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=PROMPTS_MAX)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=PROMPTS_MAX)]
    )
    max_tokens: Count | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20), _WHOLE] | None = None
    echo: Literal[False] | None = False
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1), _WHOLE] | None = None


class EmbeddingRequest(Shape):
    model: Name
    input: str | Annotated[list[str], Field(min_length=1, max_length=TEXTS_MAX)]
    encoding_format: Literal["float", "base64"] | None = "float"
    user: Annotated[str, Field(max_length=256)] | None = None


class SamplingDefaults(Shape):
    """What holds where a request does not say."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=10_000_000), _WHOLE] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


class ModelParameters(Shape):
    """Of one model, beyond what every runtime has."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024), _WHOLE] = 0
    prefix_cache: bool = True
    digest: str = ""
    url: str = ""
    key_file: str = ""
    instances: Annotated[int, Field(ge=1, le=64), _WHOLE] = 1
    fallback: str = ""
    defaults: SamplingDefaults | None = None


class RegisterRequest(Shape):
    model_id: Annotated[str, Field(min_length=1, max_length=4096)]
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}$")]
    model_type: Literal["llm", "coder", "embedding"] = "llm"
    runtime_type: _Runtime = "transformers"
    device_type: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$")] = "auto"
    quantization: Literal["none", "bnb-8bit", "bnb-4bit"] = "none"
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000), _WHOLE] = 0
    batch_size: Annotated[int, Field(ge=1, le=1024), _WHOLE] = 16
    cache_size: Annotated[int, Field(ge=0, le=1 << 30), _WHOLE] = 0
    parameters: ModelParameters = ModelParameters()


class ModelName(Shape):
    model_name: Name


class GenerateRequest(Shape):
    model_name: Name
    prompt: str
    max_tokens: Count = 512
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Field(ge=0, le=10_000_000), _WHOLE] = 50
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    stream: bool = False
    seed: Seed | None = None
    stop: Stop | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ErrorBody(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str
    details: Json = None


class ErrorAnswer(_Answer):
    error: ErrorBody


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[TokenLogprob] | None
    refusal: None = None


class ChatAnswerMessage(_Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Answer):
    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatAnswer(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(_Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Embedding(_Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(_Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: dict[str, int]


class ModelCard(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Answer):
    object: Literal["list"]
    data: list[ModelCard]


class ModelState(_Answer):
    model_name: str
    model_id: str
    model_type: str
    runtime_type: str
    state: str
    why: str
    running: int
    waiting: int
    engines: list[str]
    peak_bytes: int
    facts: dict[str, Json]
    parameters: dict[str, Json]


class ModelStates(_Answer):
    models: list[ModelState]


class Unloaded(_Answer):
    unloaded: list[str]


class GenerateAnswer(_Answer):
    text: str
    model_name: str
    tokens_generated: int
    execution_time: float
    metadata: dict[str, Json]


class Health(_Answer):
    status: Literal["ok"]
    pid: int
    uptime_s: float
    models: dict[str, str]


class Stats(_Answer):
    pool: dict[str, Json]
    engines: list[EngineView]
    streams: int


def checked(shape: type[S], value: Json, status: int) -> S:
    """The request as its shape says. Refusal with `status`, naming every field that is wrong."""
    if not isinstance(value, dict):
        raise Refusal(status, "the body must be a JSON object.", code="invalid_json")
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise _faulty(error, status) from None


def _faulty(error: ValidationError, status: int) -> Refusal:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    unknown = [_field(fault["loc"]) for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        fields, be = ("field", "is") if len(unknown) == 1 else ("fields", "are")
        some = ", ".join(unknown[:10])
        message = f"the {fields} {some} {be} not supported here: leave {'it' if len(unknown) == 1 else 'them'} out."
        return Refusal(status, message, code="unsupported_parameter", parameter=unknown[0])
    told: dict[str, str] = {}
    for fault in faults:
        told.setdefault(_field(fault["loc"]), fault["msg"])
    message = "; ".join(f"{name}: {words}" for name, words in list(told.items())[:10])
    code = "missing_required_parameter" if faults[0]["type"] == "missing" else "invalid_value"
    return Refusal(status, f"{message}.", code=code, parameter=next(iter(told)))


def _field(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content`. What pydantic adds of its own, such as which of several forms it tried, is left out."""
    text, before = "", ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text:
            text = part
        elif part.isidentifier() and part not in ("str", "list") and before not in _BY_TYPE and not part[0].isupper():
            text += f".{part}"
        before = str(part) if before not in _BY_TYPE else ""
    return text


_BY_TYPE = {"response_format"}
"""Fields whose next part in a path is the name of the form."""
