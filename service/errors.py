"""All errors that the service raises on purpose.

    ServiceError
    ├── RequestError                the request is at fault; sending it again will not help
    │   ├── MalformedRequest        malformed_request
    │   ├── RequestTimeout          request_timeout
    │   ├── HeadersTooLarge         headers_too_large
    │   ├── VersionUnknown          http_version_not_supported
    │   ├── Unimplemented           not_implemented
    │   ├── MisdirectedRequest      misdirected_request
    │   ├── MissingFile             missing_file
    │   ├── EmptyBody               empty_body
    │   ├── MalformedMultipart      malformed_multipart
    │   ├── Unauthorized            unauthorized
    │   ├── Forbidden               forbidden
    │   ├── NotFound                not_found
    │   ├── MethodNotAllowed        method_not_allowed
    │   ├── Conflict                conflict
    │   ├── LoadFailed              load_failed
    │   ├── PayloadTooLarge         payload_too_large
    │   ├── ImageTooLarge           image_too_large
    │   ├── TooManyImages           too_many_images
    │   ├── UnsupportedMediaType    unsupported_media_type
    │   ├── InvalidImage            invalid_image
    │   └── InvalidParameter        invalid_parameter
    ├── Unavailable                 the request was fine, the service cannot answer it now
    │   ├── Overloaded              overloaded         (carries retry_after, seconds)
    │   ├── IntakeFull              intake_full
    │   ├── NotReady                not_ready
    │   ├── Draining                draining
    │   ├── EngineFailed            engine_failed
    │   ├── NotEnoughMemory         not_enough_memory
    │   └── DeadlineExceeded        deadline_exceeded
    ├── InternalError               internal           (a defect of the service, or a model that fails)
    │   └── NotANumber              internal           (the model answered with NaN or infinity)
    └── StartError                  the service cannot start; one sentence says what to do
        ├── CheckpointError         the weights are missing, damaged or of another kind
        │   └── NotCached           they are not on this host, and the network must not be used
        └── ConfigurationError      settings that contradict each other, a resource that is missing

An error has a ``code`` and a message for people, but no HTTP status: the table from errors to statuses is in
`service.api.errors`.
"""

from __future__ import annotations


class ServiceError(Exception):
    """The base of all errors. A client may read ``str(error)``: it holds no path and no internal name."""

    code = "internal"


class RequestError(ServiceError):
    """The request is at fault; sending it again will not help."""


class MalformedRequest(RequestError):
    """Bytes that are no HTTP."""

    code = "malformed_request"


class RequestTimeout(RequestError):
    """A request whose head took too long to arrive."""

    code = "request_timeout"


class HeadersTooLarge(RequestError):
    """A request line and headers above the limit, or trailers and chunk extensions far larger than the body."""

    code = "headers_too_large"


class VersionUnknown(RequestError):
    """A version of HTTP that the service does not speak."""

    code = "http_version_not_supported"


class Unimplemented(RequestError):
    """An unknown method, or a transfer coding other than chunked."""

    code = "not_implemented"


class MisdirectedRequest(RequestError):
    """A host name that the service does not answer to."""

    code = "misdirected_request"


class MissingFile(RequestError):
    """A multipart body without the part that carries the image."""

    code = "missing_file"


class EmptyBody(RequestError):
    """No bytes where an image was expected."""

    code = "empty_body"


class MalformedMultipart(RequestError):
    """A multipart body that does not follow its own boundary."""

    code = "malformed_multipart"


class Unauthorized(RequestError):
    """No API key, or one that is not in the file."""

    code = "unauthorized"


class Forbidden(RequestError):
    """A change of the served models by a client that has no right to it."""

    code = "forbidden"


class Conflict(RequestError):
    """A change that contradicts the state of the service."""

    code = "conflict"


class LoadFailed(RequestError):
    """A model that could not be loaded, or failed its check. Nothing was changed."""

    code = "load_failed"


class NotFound(RequestError):
    """No such route, or no such model."""

    code = "not_found"


class MethodNotAllowed(RequestError):
    """The route exists, the method does not."""

    code = "method_not_allowed"


class PayloadTooLarge(RequestError):
    """More bytes than ``max_upload_bytes``."""

    code = "payload_too_large"


class ImageTooLarge(RequestError):
    """More pixels than ``max_image_pixels``, judged before any is decoded."""

    code = "image_too_large"


class TooManyImages(RequestError):
    """More images than ``max_images_per_request``."""

    code = "too_many_images"


class UnsupportedMediaType(RequestError):
    """Bytes of none of the accepted image formats, or a body that is neither form nor image."""

    code = "unsupported_media_type"


class InvalidImage(RequestError):
    """Bytes that begin like an accepted format and cannot be decoded: damaged or truncated."""

    code = "invalid_image"


class InvalidParameter(RequestError):
    """A query parameter or header outside its range."""

    code = "invalid_parameter"


class Unavailable(ServiceError):
    """The request was fine; the service cannot answer it now."""


class Overloaded(Unavailable):
    """No slot is free, or none becomes free in time. ``retry_after``: seconds until the queue has room."""

    code = "overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IntakeFull(Unavailable):
    """The bytes of incomplete requests have reached the limit of what the service may hold."""

    code = "intake_full"


class NotReady(Unavailable):
    """The model is still being loaded or warmed up."""

    code = "not_ready"


class Draining(Unavailable):
    """The service is about to end and takes no new requests."""

    code = "draining"


class EngineFailed(Unavailable):
    """The engine died, or its device failed, while it held the request."""

    code = "engine_failed"


class NotEnoughMemory(Unavailable):
    """The memory does not suffice for another model beside the one that serves."""

    code = "not_enough_memory"


class DeadlineExceeded(Unavailable):
    """The request's deadline passed before its answer was there."""

    code = "deadline_exceeded"


class InternalError(ServiceError):
    """A defect of the service, or a model that fails."""

    code = "internal"


class NotANumber(InternalError):
    """The model answered this image with NaN or infinity. The batch's other images have their answers."""

    def __init__(self) -> None:
        super().__init__("the model answered with numbers that are none (NaN or infinity)")


class StartError(ServiceError):
    """The service cannot start. The message is one sentence and names the remedy."""


class CheckpointError(StartError):
    """The weights are missing or damaged, or do not fit the configuration."""


class NotCached(CheckpointError):
    """The weights are not on this host, and the network must not be used."""


class ConfigurationError(StartError):
    """Settings that contradict each other, or a resource that is missing."""
