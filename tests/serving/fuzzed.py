"""Inputs that nobody would send on purpose: messages with any values, damaged valid messages, and any bytes."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),  # an open enum takes any number
}
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),  # proto has no lone surrogates
    st.sampled_from(
        ["", "\0", "a\0b", "\u202e", "\U0001f600" * 256, "x" * 257, "' OR 1=1 --", "../..", "%s%n", "\r\n"]
    ),
)


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of one type, each field absent or of any value."""
    made = GetMessageClass(descriptor)
    fields = {field.name: _values(field) for field in descriptor.fields}

    def filled(chosen: dict[str, Any]) -> Message:
        message = made()
        for name, value in chosen.items():  # of a oneof, the last one counts
            _put(message, descriptor.fields_by_name[name], value)
        return message

    return st.fixed_dictionaries({}, optional=fields).map(filled)


@st.composite
def varied(draw: st.DrawFn, valid: Message) -> Message:
    """A valid message of which up to three fields, at any depth, are absent or of any value."""
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw(st.integers(0, 3)) if valid.DESCRIPTOR.fields else 0):
        at, field = message, draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
        while (inner := _inside(at, field)) and draw(st.booleans()):
            at = draw(st.sampled_from(inner))
            field = draw(st.sampled_from(list(at.DESCRIPTOR.fields)))
        at.ClearField(field.name)
        if draw(st.booleans()):
            _put(at, field, draw(_values(field)))
    return message


def _inside(message: Message, field: FieldDescriptor) -> list[Message]:
    """The messages that a field holds."""
    if field.message_type is None:
        return []
    value = getattr(message, field.name)
    if _is_map(field):
        return [value[key] for key in sorted(value)]
    if field.is_repeated:
        return list(value)
    return [value] if message.HasField(field.name) else []


def _put(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_map(field):
        for key, one in value.items():
            getattr(message, field.name)[key].CopyFrom(one)
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _values(field: FieldDescriptor) -> st.SearchStrategy:
    if _is_map(field):
        return st.dictionaries(TEXTS, _one(field.message_type.fields_by_name["value"]), max_size=12)
    if field.is_repeated:
        return st.lists(_one(field), max_size=8)
    return _one(field)


def _one(field: FieldDescriptor) -> st.SearchStrategy:
    kind = field.cpp_type
    if field.message_type is not None:
        return messages(field.message_type)
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        return st.one_of(
            st.integers(0, 5), st.integers(0, 2**31 - 1), st.integers(low, high), st.sampled_from([low, high])
        )
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return TEXTS
    return st.one_of(st.floats(-90, 90), st.floats()) if kind == FieldDescriptor.CPPTYPE_DOUBLE else st.floats(width=32)


def damaged(valid: bytes, draw: random.Random) -> bytes:
    """The bytes with a few of them changed, dropped, doubled or inserted, or others altogether."""
    if draw.random() < 0.2:
        return draw.randbytes(draw.choice((0, 1, 2, 5, 30, 300)))
    content = bytearray(valid)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        at = draw.randrange(len(content) + 1)
        upto = min(len(content), at + draw.choice((1, 1, 2, 8, 40)))
        match draw.randrange(6):
            case 0:
                content[at:upto] = bytes(byte ^ (1 << draw.randrange(8)) for byte in content[at:upto])
            case 1:
                del content[at:upto]
            case 2:
                content[at:at] = content[at:upto] * draw.choice((1, 2, 30))
            case 3:
                content[at:at] = draw.randbytes(draw.choice((1, 2, 9)))
            case 4:
                content[at:at] = b"\xff" * 9 + b"\x01"  # the largest number that a varint can say: a length, a tag
            case _:
                content[at:upto] = bytes(upto - at)
    return bytes(content)
