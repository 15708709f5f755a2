"""What the README uses of Flask-Login, which brings no types."""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask

F = TypeVar("F", bound=Callable[..., Any])

class UserMixin:
    id: Any
    @property
    def is_authenticated(self) -> bool: ...
    def get_id(self) -> str: ...

class LoginManager:
    def __init__(self, app: Flask | None = None) -> None: ...
    def user_loader(self, callback: F) -> F: ...

current_user: UserMixin

def login_user(user: UserMixin, remember: bool = False) -> bool: ...
def logout_user() -> bool: ...
