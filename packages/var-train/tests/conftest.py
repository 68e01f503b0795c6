"""Imports MindSpore first: before 2.10 it cannot be imported after what loads protobuf."""

import mindspore as mindspore
