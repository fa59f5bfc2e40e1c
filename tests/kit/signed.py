# SPDX-License-Identifier: Apache-2.0
"""An image with signatures, attestations and a bill of materials, by cosign's tags and by their subjects."""
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from tests.kit import images
from tests.kit.copies import artifact, bare
from tests.kit.images import OCI_INDEX, OCI_MANIFEST, Descriptor, Layout
from tests.kit.servers import ScriptedServer, content, reply


def about(layout: Layout, subject: Descriptor, payload: bytes, **members: Any) -> Descriptor:
    return artifact(layout, payload=payload, subject=bare(subject), **members)


def listing(found: List[Descriptor]) -> Any:
    return reply(200, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found})


class Signed(NamedTuple):
    """An index, with what is about it and about its first child."""
    layout: Layout
    top: Descriptor
    signature: Descriptor  # of the index
    again: Descriptor  # of the signature
    bill: Descriptor  # of the first child
    cosign: Dict[str, Descriptor]  # by tag

    @property
    def listed(self) -> Dict[str, List[Descriptor]]:
        """What a list says, by subject."""
        first = json.loads(self.layout.read(self.top["digest"]))["manifests"][0]
        note = {"artifactType": "application/vnd.test", "annotations": {"a": "b"}}
        return {self.top["digest"]: [{**self.signature, **note}],
                self.signature["digest"]: [{**self.again, **note}], first["digest"]: [{**self.bill, **note}]}


def make_signed(root: Path) -> Signed:
    layout, index, made = images.multi_platform(root)
    note = {"a": "b"}
    signature = about(layout, index.descriptor, b"signature", annotations=note)
    cosign = {index.digest.replace(":", "-") + suffix: artifact(layout, payload=suffix.encode())
              for suffix in (".sig", ".att", ".sbom")}
    cosign[made["linux/amd64"].digest.replace(":", "-") + ".sig"] = artifact(layout, payload=b"child")
    return Signed(layout, index.descriptor, signature, about(layout, signature, b"again", annotations=note),
                  about(layout, made["linux/amd64"].descriptor, b"bill", annotations=note), cosign)


def serve_signed(server: ScriptedServer, signed: Signed, api: bool) -> str:
    """Serve it with lists of referrers, or else with the tags that stand for them."""
    layout = signed.layout
    for tag, descriptor in signed.cosign.items():
        layout.name(descriptor, tag)
    for subject, found in signed.listed.items():
        if not api:
            layout.index(found, subject.replace(":", "-"))
    server.serve(layout.root, "r")
    for descriptor in (signed.signature, signed.again, signed.bill):
        data = layout.read(descriptor["digest"])
        server.on("GET", "/manifests/" + descriptor["digest"], content(data, OCI_MANIFEST))
    if api:
        server.on("GET", "/v2/r/referrers/", listing([]))
        for subject, found in signed.listed.items():
            server.on("GET", "/v2/r/referrers/%s$" % subject, listing(found))
    return "docker://%s/r" % server.host
