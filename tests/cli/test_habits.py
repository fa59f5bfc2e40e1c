# SPDX-License-Identifier: Apache-2.0
"""What people type who know docker, skopeo, crane, regctl or oras: it works, or one line names what does.

Each row is a command line of such a tool, the words that its user then tries here, the exit
code and the line that matters.  H is a registry, S and R are the digests of a layer and of a
manifest there, and I is the ID of the image that the store holds as app:1.
"""
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Dict, Iterator

import pytest

import minipull
from tests.kit import ROOT
from tests.kit.commands import Call
from tests.kit.images import Layout, digest_of, multi_platform, push_layout_http, specs
from tests.kit.processes import minipull_env, run
from tests.kit.site import Site

NO = r"minipull: there is no command %s; did you mean %s\? see minipull --help"
NOT = r"minipull: there is no command %s; minipull %s; see minipull --help"
OPTION = r"minipull: unrecognized arguments: %s; %s see minipull %s --help"
BUILDS, RUNS = "builds no images", "runs no containers; unpack makes the root file system of an image"
TEMPLATES = "there are no Go templates; --format json has all;"
HABITS = [
    # docker
    ("docker pull H/app:1", "pull H/app:1", 0, "Status: Downloaded newer image for H/app:1"),
    ("docker pull -q H/app:1", "pull -q H/app:1", 0, "H/app@R"),
    ("docker pull -a H/app", "pull -a H/app", 0, "Status: Downloaded newer image for H/app:1@R"),
    ("docker pull --platform linux/arm64 H/multi:1", "pull --platform linux/arm64 H/multi:1", 0,
     "Digest: sha256:.*"),
    ("docker push H/own:1", "push H/own:1", 0, "1: digest: sha256:.* size: .*"),
    ("docker images", "images", 0, "docker.io/library/app:1 .*"),
    ("docker images --format '{{.ID}}'", "images --format '{{.ID}}'", 2,
     ".*; %s see minipull images --help" % TEMPLATES),
    ("docker image ls", "image ls", 2, NO % ("image ls", "images")),
    ("docker image pull H/app:1", "image pull H/app:1", 2, NO % ("image pull", "pull")),
    ("docker image inspect app:1", "image inspect app:1", 2, NO % ("image inspect", "inspect")),
    ("docker image rm app:1", "image rm app:1", 2, NO % ("image rm", "rm")),
    ("docker image prune", "image prune", 2, NO % ("image prune", "gc")),
    ("docker system prune", "system prune", 2, NO % ("system prune", "gc")),
    ("docker rmi app:1", "rmi app:1", 2, NO % ("rmi", "rm")),
    ("docker rmi app:1", "rm app:1", 0, "Untagged: app:1"),
    ("docker rmi I", "rm I", 0, "Untagged: app:1"),
    ("docker rmi -f app:1", "rm -f app:1", 2, OPTION % ("-f", "it never asks; leave it out;", "rm")),
    ("docker tag app:1 H/app:9", "tag app:1 H/app:9", 0, ""),
    ("docker save app:1 | gzip >app.tar.gz", "minipull save app:1 | gzip >app.tar.gz && gzip -t app.tar.gz", 0,
     ""),
    ("docker save -o app.tar app:1", "save -o app.tar app:1", 0, ""),
    ("docker load <saved.tar", "minipull load <saved.tar", 0, "Loaded image: app:1"),
    ("docker load -i saved.tar", "load -i saved.tar", 0, "Loaded image: app:1"),
    ("docker export -o app.tar app", "export -o app.tar app:1", 0, ""),
    ("crane digest --platform linux/arm64 H/multi:1", "digest --platform linux/arm64 H/multi:1", 0, "sha256:.*"),
    ("docker inspect app:1", "inspect app:1", 0, '  "platform": "linux/amd64",'),
    ("docker inspect -f '{{.Id}}' app:1", "inspect -f '{{.Id}}' app:1", 2,
     OPTION % ("-f", TEMPLATES, "inspect")),
    ("docker manifest inspect H/app:1", "manifest inspect H/app:1", 2, NO % ("manifest inspect", "manifest")),
    ("docker buildx imagetools inspect H/app:1", "buildx imagetools inspect H/app:1", 2,
     NO % ("buildx imagetools", "inspect docker://REF")),
    ("docker export app | tar t", "minipull export app:1 | tar t", 0, "srv/layer-0/link"),
    ("docker login -u ann -p s3cret H", "login -u ann -p s3cret H", 2,
     OPTION % ("-p", r"did you mean --password-stdin\?", "login")),
    ("docker login H", "login H", 2,
     "minipull: no terminal to ask for the password on; use -u USER --password-stdin"),
    ("docker logout H", "logout H", 0, "Not logged in to H"),
    ("docker run app:1", "run app:1", 2, NOT % ("run", RUNS)),
    ("docker ps", "ps", 2, NOT % ("ps", RUNS)),
    ("docker container ls", "container ls", 2, NOT % ("container", RUNS)),
    ("docker build .", "build .", 2, NOT % ("build", BUILDS)),
    ("docker version", "version", 2, NO % ("version", "--version")),
    ("docker info", "info", 2, NO % ("info", "doctor")),
    ("docker search app", "search app", 2, NO % ("search", "catalog")),
    ("podman image mount app:1", "image mount app:1", 2, NO % ("image mount", "unpack")),
    ("ctr images import app.tar", "images import app.tar", 2, NO % ("images import", "load")),
    # skopeo
    ("skopeo copy docker://H/app:1 oci:layout:1", "copy docker://H/app:1 oci:layout:1", 0, "Status: Copied .*"),
    ("skopeo copy --all docker://H/multi:1 oci:layout", "copy --all docker://H/multi:1 oci:layout:1", 0,
     "Status: Copied .*"),
    ("skopeo copy -a docker://H/multi:1 oci:layout", "copy -a docker://H/multi:1 oci:layout:1", 0,
     "Status: Copied .*"),
    ("skopeo copy --src-tls-verify=false --dest-tls-verify=false docker://H/app:1 docker://H/to:1",
     "copy --src-tls-verify=false --dest-tls-verify=false docker://H/app:1 docker://H/to:1", 0, "Status: Copied .*"),
    ("skopeo --insecure-policy copy docker://H/app:1 oci:layout",
     "--insecure-policy copy docker://H/app:1 oci:layout", 2,
     "minipull: --insecure-policy before the command; there is no policy; leave it out; see minipull --help"),
    ("skopeo --override-arch arm64 copy docker://H/app:1 oci:layout",
     "--override-arch arm64 copy docker://H/app:1 oci:layout", 2,
     r"minipull: --override-arch before the command; did you mean --platform OS/ARCH, after the command\? see .*"),
    ("skopeo inspect docker://H/app:1", "inspect docker://H/app:1", 0, '  "digest": "R",'),
    ("skopeo inspect --raw docker://H/app:1", "inspect --raw docker://H/app:1", 0, '.*"schemaVersion": *2.*'),
    ("skopeo inspect --config docker://H/app:1", "inspect --config docker://H/app:1", 0, '.*"diff_ids".*'),
    ("skopeo inspect --no-tags docker://H/app:1", "inspect --no-tags docker://H/app:1", 2,
     OPTION % ("--no-tags", "it lists no tags anyway; leave it out;", "inspect")),
    ("skopeo inspect --format '{{.Digest}}' docker://H/app:1",
     "inspect --format '{{.Digest}}' docker://H/app:1", 2,
     ".*; %s see minipull inspect --help" % TEMPLATES),
    ("skopeo list-tags docker://H/app", "list-tags docker://H/app", 2, NO % ("list-tags", "tags")),
    ("skopeo list-tags docker://H/app", "tags docker://H/app", 0, "1"),
    ("skopeo delete docker://H/gone:1", "delete docker://H/gone:1", 0, "Deleted: H/gone:1"),
    ("skopeo sync --src docker --dest dir H/app d", "sync --src docker --dest dir H/app d", 2,
     NO % ("sync", "copy")),
    ("skopeo login -u ann H", "login -u ann H", 2, "minipull: no terminal .*; use -u USER --password-stdin"),
    ("skopeo standalone-verify m r k s", "standalone-verify m r k s", 2, NO % ("standalone-verify", "verify")),
    # crane
    ("crane ls H/app", "ls H/app", 2, NO % ("ls", "images or tags")),
    ("crane digest H/app:1", "digest H/app:1", 0, "R"),
    ("crane digest --full-ref H/app:1", "digest --full-ref H/app:1", 2,
     OPTION % ("--full-ref", r"did you mean --pin\?", "digest")),
    ("crane manifest H/app:1", "manifest H/app:1", 0, '.*"schemaVersion": *2.*'),
    ("crane config H/app:1", "config H/app:1", 2, NO % ("config", "inspect --config docker://REF")),
    ("crane blob H/app@S | tar tz", "minipull blob H/app@S | tar tz", 0, "srv/layer-0/link"),
    ("crane catalog H", "catalog H", 0, "app"),
    ("crane cp H/app:1 H/to:1", "cp H/app:1 H/to:1", 2, NO % ("cp", "copy")),
    ("crane cp H/app:1 H/to:1", "copy H/app:1 H/to:1", 2, "minipull: copy H/to:1: want docker://REF, .*"),
    ("crane tag H/app:1 prod", "tag H/app:1 prod", 3,
     "minipull: No such image: H/app:1; copy docker://SRC docker://DST names one at its registry"),
    ("crane validate --remote H/app:1", "validate --remote H/app:1", 2, NO % ("validate", "check")),
    ("crane validate --remote H/app:1", "check docker://H/app:1", 0, ".*ok.*"),
    ("crane export H/app:1 - | tar t", "minipull export H/app:1 - | tar t", 0, "srv/layer-0/link"),
    ("crane export H/app:1 app.tar", "minipull export H/app:1 app.tar && tar tf app.tar", 0, "srv/layer-0/link"),
    ("crane pull H/app:1 app.tar", "pull H/app:1 app.tar", 2,
     r"minipull: app.tar is no image; did you mean pull, and then save -o app.tar H/app:1\? see minipull pull --help"),
    ("crane push saved.tar H/to:2", "push saved.tar H/to:2", 2,
     r"minipull: saved.tar is no image; did you mean copy docker-archive:saved.tar docker://H/to:2\? see .*"),
    ("crane push saved.tar H/to:2", "copy docker-archive:saved.tar docker://H/to:2", 0,
     "Copied 1 of 1 images, .*"),
    ("crane delete H/app:1", "delete H/app:1", 2, "minipull: want docker://REF, to delete at a registry; .*"),
    ("crane --insecure ls H/app", "--insecure tags H/app", 2,
     r"minipull: --insecure before .*; did you mean --plain-http or --tls-verify=false\? see .*"),
    ("crane auth login H", "auth login H", 2, NO % ("auth login", "login")),
    ("crane append -b H/app:1 -f l.tar", "append -b H/app:1 -f l.tar", 2, NOT % ("append", BUILDS)),
    ("crane registry serve", "registry serve", 2, NO % ("registry serve", "serve")),
    # regctl
    ("regctl tag ls H/app", "tag ls H/app", 2, NO % ("tag ls", "tags")),
    ("regctl tag rm H/app:1", "tag rm H/app:1", 2, NO % ("tag rm", "delete")),
    ("regctl repo ls H", "repo ls H", 2, NO % ("repo ls", "catalog")),
    ("regctl image copy H/app:1 H/to:1", "image copy H/app:1 H/to:1", 2, NO % ("image copy", "copy")),
    ("regctl image digest H/app:1", "image digest H/app:1", 2, NO % ("image digest", "digest")),
    ("regctl image export H/app:1 app.tar", "image export H/app:1 app.tar", 2, NO % ("image export", "save")),
    ("regctl image mod H/app:1", "image mod H/app:1", 2,
     r"minipull: there is no command image mod; minipull %s; .*" % BUILDS),
    ("regctl manifest get H/app:1", "manifest get H/app:1", 2, NO % ("manifest get", "manifest")),
    ("regctl artifact list H/app:1", "artifact list H/app:1", 2, NO % ("artifact list", "referrers")),
    ("regctl blob get H/app S", "blob get H/app S", 2, NO % ("blob get", "blob")),
    ("regctl registry login H", "registry login H", 2, NO % ("registry login", "login")),
    # oras
    ("oras discover H/app:1", "discover H/app:1", 2, NO % ("discover", "referrers")),
    ("oras discover H/app:1", "referrers H/app:1", 0, "sha256:.*"),
    ("oras pull H/note:1", "pull H/note:1", 1, "minipull: .*; minipull copy takes it as it is .*"),
    ("oras repo tags H/app", "repo tags H/app", 2, NO % ("repo tags", "tags")),
    ("oras resolve H/app:1", "resolve H/app:1", 2, NO % ("resolve", "digest")),
    ("oras manifest fetch H/app:1", "manifest fetch H/app:1", 2, NO % ("manifest fetch", "manifest")),
    # the store's questions
    ("docker images -q", "images -q", 0, "[0-9a-f]{12}"),
    ("docker images --digests", "images --digests", 0, ".* R .*"),
    ("docker images --no-trunc", "images --no-trunc", 0, ".* I .*"),
    ("docker images app", "images app", 0, ".*app:1 .*"),
    ("docker images --filter reference=app", "images --filter reference=app", 2,
     OPTION % ("--filter", r"did you mean images NAME, or a glob\?", "images")),
    ("docker history app:1", "history app:1", 0, ".*"),
    ("docker system df", "system df", 2, NO % ("system df", "df")),
    ("docker system df", "df", 0, ".*[Bb]lobs.*"),
    ("docker image prune", "gc --dry-run", 0, ".*"),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[str, str]]:
    """A registry and a folder with a store, and what stands for them in a row."""
    folder = tmp_path_factory.mktemp("habits")
    layout = Layout(folder / "layout")
    image = layout.image(specs(1, 900), "1")
    layout.image(specs(1, 900, seed=1), "2")
    several, _, _ = multi_platform(folder / "several")
    site = Site(folder / "served")
    try:
        for name in ("app", "gone"):
            push_layout_http(layout, "1", "%s/%s:1" % (site.host, name))
        push_layout_http(several, "latest", site.host + "/multi:1")
        manifest = layout.resolve("1")
        site.push("signature", digest_of(site.manifest("signature", subject=manifest)), subject=manifest)
        site.push("note", repository="note", artifactType="text/plain")
        store = minipull.Store(str(folder / "store"))
        minipull.copy("oci:%s:1" % layout.root, "store:app:1", store=store)
        minipull.save(["app:1"], store, str(folder / "saved.tar"))
        minipull.copy("oci:%s:2" % layout.root, "store:%s/own:1" % site.host, store=store)
        yield {"H": site.host, "R": str(manifest["digest"]), "S": str(image.layers[0].descriptor["digest"]),
               "I": store.image("app:1").id, "folder": str(folder)}
    finally:
        site.stop()


@pytest.mark.parametrize("theirs, ours, code, line", HABITS, ids=[row[0] for row in HABITS])
def test_a_habit_works_or_is_answered_with_what_does(
        call: Call, scene: Dict[str, str], home: Path, root: Path, theirs: str, ours: str, code: int, line: str) -> None:
    def filled(text: str, quote: bool = False) -> str:
        known = {key: re.escape(value) if quote else value for key, value in scene.items()}
        return re.sub(r"\b[HRSI]\b", lambda match: known[match.group()], text)

    shutil.copytree(os.path.join(scene["folder"], "store"), str(root))
    shutil.copy(os.path.join(scene["folder"], "saved.tar"), str(home))
    if ours.startswith("minipull "):
        (home / "minipull").write_text("#!/bin/sh\nexec '%s' '%s' \"$@\"\n" % (sys.executable, ROOT / "minipull"))
        (home / "minipull").chmod(0o755)
        env = minipull_env(home, {"MINIPULL_ROOT": str(root)})
        done = run(["bash", "-o", "pipefail", "-c", filled(ours)], dict(env, PATH="%s:%s" % (home, env["PATH"])),
                   cwd=home, check=False)
        shown, result = (done.out + done.err).replace("python3 %s/minipull" % ROOT, "minipull"), done.code
    else:
        finished = call(*shlex.split(filled(ours)))
        shown, result = finished.out + finished.err, finished.code
    assert result == code, shown
    assert [text for text in shown.split("\n") if re.fullmatch(filled(line, True), text)], shown
    assert code != 2 or shown.count("\n") == 1 or "|" in ours
