"""The operator's client: which bundle a running server answers with, another one, back, one in the shadow.

>>> with Operator("localhost:50051") as operator:                                          # doctest: +SKIP
...     operator.reload("larr")
...     operator.roll_back()

Errors are `grpc.RpcError`; their details say why a bundle was refused.
"""

from __future__ import annotations

import grpc

from serving.client import LOCAL, Access, dialled
from serving.v1 import admin_pb2 as pb
from serving.v1 import admin_pb2_grpc as pb_grpc

TIMEOUT_S = 120.0  # a bundle is loaded and verified meanwhile


class Operator:
    """Close it, or use it in a `with` block.

    Args:
        access: with a token of scope `admin`, where the server wants tokens.
    Raises ValueError where plain text would carry a secret to another machine.
    """

    def __init__(self, address: str, access: Access = LOCAL, timeout_seconds: float = TIMEOUT_S) -> None:
        self._channel = dialled(grpc, access, address)
        self._stub = pb_grpc.AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._said = {"timeout": timeout_seconds, "metadata": access.metadata}

    def serving(self) -> pb.Serving:
        """What is loaded, and how the bundle in the shadow compares."""
        return self._stub.GetServing(pb.GetServingRequest(), **self._said).serving

    def reload(self, bundle: str) -> pb.Serving:
        """Answer with the bundle of this name, once it is verified."""
        return self._stub.Reload(pb.ReloadRequest(bundle=bundle), **self._said).serving

    def roll_back(self) -> pb.Serving:
        """Answer at once with what answered before the last change to something else."""
        return self._stub.RollBack(pb.RollBackRequest(), **self._said).serving

    def shadow(self, bundle: str, share: float = 0.0) -> pb.Serving:
        """Have a bundle score a share of the requests beside the one that answers; an empty name: none any more."""
        return self._stub.Shadow(pb.ShadowRequest(bundle=bundle, share=share), **self._said).serving

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
