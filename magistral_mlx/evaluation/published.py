"""Figures that Mistral published: pass@1 in percent, by task and model."""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, float]] = {
    "aime24": {
        "Small 1.2": 86.14,
        "Medium 1.2": 91.82,
        "Small 1.1": 70.52,
        "Medium 1.1": 72.03,
    },
    "aime25": {
        "Small 1.2": 77.34,
        "Medium 1.2": 83.48,
        "Small 1.1": 62.03,
        "Medium 1.1": 60.99,
    },
    "livecodebench": {"Small 1.2": 70.88, "Medium 1.2": 75.00},
    "gpqa": {"Small 1.2": 70.07, "Medium 1.2": 76.26},
}
