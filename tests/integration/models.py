"""Artifact types of the tests that run on a real Ray; scripts that they start import them too."""

from __future__ import annotations

from pydantic import BaseModel

from flock_ray import flock_type


@flock_type(name="integration.Word")
class Word(BaseModel):
    text: str


@flock_type(name="integration.Shout")
class Shout(BaseModel):
    text: str


@flock_type(name="integration.Length")
class Length(BaseModel):
    text: str
    length: int


@flock_type(name="integration.Job")
class Job(BaseModel):
    n: int
    gate: str = ""
    """A file that has to appear before the work goes on."""


@flock_type(name="integration.Done")
class Done(BaseModel):
    n: int
    pid: int
    started: float = 0.0
    ended: float = 0.0
