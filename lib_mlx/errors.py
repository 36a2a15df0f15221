"""Every error a user of lib_mlx can meet, with its stable code.

The same object is rendered for C (`code`, `message`, `hint`), for each HTTP dialect (in that dialect's own
shape, with `http_status`) and at the terminal. A code once shipped is never renamed.

```
LibMlxError
├── InvalidJson            invalid_json            400  the bytes are not a JSON object
├── InvalidArgument        invalid_argument        400  a field has a wrong name, type or value
├── UnsupportedFeature     unsupported_feature     400  well-formed, but this model or version cannot honour it
├── ContextLengthExceeded  context_length_exceeded 400  the prompt does not fit the model's context
├── PreviousResponseNotFound previous_response_not_found 400  the response to be continued is not kept
├── Unauthorized           unauthorized            401  the API key is missing or wrong
├── ForbiddenHost          forbidden_host          403  the Host header is not on the allow-list
├── ForbiddenOrigin        forbidden_origin        403  the Origin header is not on the allow-list
├── InvalidHandle          invalid_handle          404  no model is loaded under that handle
├── ModelNotFound          model_not_found         404  no model of that name or path
├── NotFound               not_found               404  no such route or object
├── TargetNotFound         target_not_found        404  nothing on the picture was pointed at
├── MethodNotAllowed       method_not_allowed      405  the route exists, the method does not
├── RequestTimeout         request_timeout         408  the request's body took too long to arrive
├── ModelBusy              model_busy              409  the model is answering requests
├── PayloadTooLarge        payload_too_large       413  the request body is over the limit
├── UnsupportedMediaType   unsupported_media_type  415  the body is not application/json
├── QueueFull              queue_full              429  as many requests are in flight as the server allows
├── Cancelled              cancelled               499  the request was cancelled before it finished
├── Internal               internal                500  a defect in lib_mlx
├── Suspended              suspended               503  the model is suspended by its host
├── EngineDied             engine_died             503  the process that ran the model has ended
├── ModelLoading           model_loading           503  the model is not ready yet
├── ShuttingDown           shutting_down           503  the server or process is stopping
├── Draining               draining                503  the server finishes what runs and takes nothing new
├── InsufficientMemory     insufficient_memory     507  the model or request does not fit into memory
├── DiskFull               disk_full               507  there is no room left on the disk
├── UnsupportedModel       unsupported_model       400  the checkpoint's architecture or format is not supported
├── CorruptModel           corrupt_model           400  the checkpoint's files are damaged or incomplete
├── DownloadFailed         download_failed         502  a model could not be fetched
├── LoadCancelled          load_cancelled          499  the load was cancelled by unload_model
├── AddressInUse           address_in_use          409  the requested port or socket is taken
└── ServerStartFailed      server_start_failed     500  the server could not start
```
Raised by the native library alone: `python_not_found`, `python_mismatch`, `python_init`, `forked`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import TypedDict  # pydantic reads this one on every Python

if TYPE_CHECKING:
    from typing import Self


class ErrorObject(TypedDict):
    """The error as JSON, the same in C answers and in logs."""

    code: str
    message: str
    hint: str


class LibMlxError(Exception):
    """Base of every error lib_mlx raises on purpose.

    `message` says what went wrong and why; `hint` how to fix it; `param` names the offending field, if one
    does. `retry_after` is in seconds and set only where trying again makes sense.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, hint: str = "", param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after = retry_after

    def to_json(self) -> ErrorObject:
        """Return `{"code", "message", "hint"}` as the C ABI documents it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def copy(self) -> Self:
        """Return an equal error without a traceback: one object must not be raised twice, nor keep frames alive."""
        return type(self)(self.message, hint=self.hint, param=self.param, retry_after=self.retry_after)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class InvalidJson(LibMlxError):
    """The bytes are not a JSON object."""

    code, http_status = "invalid_json", 400


class InvalidArgument(LibMlxError):
    """A field has an unknown name, a wrong type or a value out of range."""

    code, http_status = "invalid_argument", 400


class UnsupportedFeature(LibMlxError):
    """The request is well-formed, but this model or version cannot honour it."""

    code, http_status = "unsupported_feature", 400


class ContextLengthExceeded(LibMlxError):
    """The prompt does not fit into the model's context."""

    code, http_status = "context_length_exceeded", 400


class PreviousResponseNotFound(LibMlxError):
    """The response that a request continues is not kept (any more); clients know OpenAI's name for it."""

    code, http_status = "previous_response_not_found", 400


class Unauthorized(LibMlxError):
    """The API key is missing or wrong."""

    code, http_status = "unauthorized", 401


class ForbiddenHost(LibMlxError):
    """The Host header is not on the allow-list (DNS rebinding)."""

    code, http_status = "forbidden_host", 403


class ForbiddenOrigin(LibMlxError):
    """The Origin header is not on the allow-list."""

    code, http_status = "forbidden_origin", 403


class InvalidHandle(LibMlxError):
    """No model is loaded under that handle."""

    code, http_status = "invalid_handle", 404


class ModelNotFound(LibMlxError):
    """No model of that name or path exists."""

    code, http_status = "model_not_found", 404


class NotFound(LibMlxError):
    """No such route or object."""

    code, http_status = "not_found", 404


class TargetNotFound(LibMlxError):
    """The model pointed at nothing on the picture."""

    code, http_status = "target_not_found", 404


class MethodNotAllowed(LibMlxError):
    """The route exists, the method does not."""

    code, http_status = "method_not_allowed", 405


class RequestTimeout(LibMlxError):
    """The body of a request took too long to arrive."""

    code, http_status = "request_timeout", 408


class ModelBusy(LibMlxError):
    """The model is answering requests and cannot be unloaded now."""

    code, http_status = "model_busy", 409


class PayloadTooLarge(LibMlxError):
    """The request body is over the limit."""

    code, http_status = "payload_too_large", 413


class UnsupportedMediaType(LibMlxError):
    """The body is not `application/json`."""

    code, http_status = "unsupported_media_type", 415


class QueueFull(LibMlxError):
    """As many requests are in flight as the server allows."""

    code, http_status = "queue_full", 429


class Cancelled(LibMlxError):
    """The request was cancelled before it finished."""

    code, http_status = "cancelled", 499


class Internal(LibMlxError):
    """A defect in lib_mlx; the message says where."""

    code, http_status = "internal", 500


class Suspended(LibMlxError):
    """The model is suspended by its host."""

    code, http_status = "suspended", 503


class EngineDied(LibMlxError):
    """The process that ran the model has ended; the message says how. Load it again."""

    code, http_status = "engine_died", 503


class ModelLoading(LibMlxError):
    """The model is not ready yet."""

    code, http_status = "model_loading", 503


class ShuttingDown(LibMlxError):
    """The server or the process is stopping."""

    code, http_status = "shutting_down", 503


class Draining(LibMlxError):
    """The server finishes what runs and takes nothing new."""

    code, http_status = "draining", 503


class InsufficientMemory(LibMlxError):
    """The model or the request does not fit into memory."""

    code, http_status = "insufficient_memory", 507


class DiskFull(LibMlxError):
    """There is no room left on the disk for what is to be written."""

    code, http_status = "disk_full", 507


class UnsupportedModel(LibMlxError):
    """The checkpoint's architecture or format is not supported, or it carries code."""

    code, http_status = "unsupported_model", 400


class CorruptModel(LibMlxError):
    """The checkpoint's files are damaged or incomplete."""

    code, http_status = "corrupt_model", 400


class DownloadFailed(LibMlxError):
    """A model could not be fetched from any of its sources."""

    code, http_status = "download_failed", 502


class LoadCancelled(LibMlxError):
    """The load was cancelled by `unload_model` or `shutdown`."""

    code, http_status = "load_cancelled", 499


class AddressInUse(LibMlxError):
    """The requested port or socket path is taken."""

    code, http_status = "address_in_use", 409


class ServerStartFailed(LibMlxError):
    """The server could not start."""

    code, http_status = "server_start_failed", 500


def error_from_json(error: ErrorObject) -> LibMlxError:
    """Return the error that `LibMlxError.to_json` made `error` of; of an unknown code, `Internal`."""
    known = {kind.code: kind for kind in LibMlxError.__subclasses__()}
    return known.get(error["code"], Internal)(error["message"], hint=error["hint"])
