"""The front door: one thin function a verb, and how results read."""
