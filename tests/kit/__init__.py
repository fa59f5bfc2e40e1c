# SPDX-License-Identifier: Apache-2.0
"""What tests are made with: images, hostile layers, scripted servers, real peers."""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "data"
