# SPDX-License-Identifier: Apache-2.0
"""Commands run in this process, and logins at a registry."""
import base64
import json
import re
from pathlib import Path
from typing import Any, Callable, Dict

from tests.kit.images import Layout
from tests.kit.processes import Finished
from tests.kit.servers import Action, Connection, challenge, reply


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1 and self.err.startswith("minipull: "), self.err
        return self.err


Call = Callable[..., Result]


def is_sound(out: str, *subjects: object) -> bool:
    """Whether check says of these subjects, and nothing else, that they are whole, and then what they have."""
    lines = "".join("%s: ok\n" % re.escape(str(subject)) for subject in subjects)
    return re.fullmatch(lines + r"ok: \d+ images?, \d+ blobs?, [\d.]+[kMG]?B\n", out) is not None


def digest(layout: Layout, name: str = "latest") -> str:
    return str(layout.resolve(name)["digest"])


# -- login -----------------------------------------------------------------------

Login = Callable[..., Finished]


def auth(user: str, password: str) -> Dict[str, str]:
    return {"auth": base64.b64encode(("%s:%s" % (user, password)).encode()).decode()}


def basic(user: str, password: str) -> Action:
    """Let in who proves to be this user."""
    wanted = "Basic " + auth(user, password)["auth"]

    def act(connection: Connection) -> None:
        good = connection.request.headers.get("authorization") == wanted
        (reply(200, {}) if good else challenge('Basic realm="r"'))(connection)
    return act


def auths(path: Path) -> Any:
    return json.loads(path.read_text())["auths"]
