"""The dashboards of inferd as code; `make generate` writes the JSON that Grafana reads."""

import json

from grafana.source.dashboards import fleet, host, model
from grafana.source.dashboards.annotations import Annotations
from grafana.source.dashboards.layout import Board
from grafana_foundation_sdk.cog.encoder import JSONEncoder


def files() -> dict[str, str]:
    """Path below grafana/ -> its text."""
    made = (
        (fleet.board(), fleet.annotations()),
        (model.board(), model.annotations()),
        (host.board(), host.annotations()),
    )
    return {f"dashboards/{_name(board)}.json": _text(board, shown) for board, shown in made}


def _name(board: Board) -> str:
    return str(board.build().title).removeprefix("inferd / ")


def _text(board: Board, annotations: Annotations) -> str:
    made = json.loads(JSONEncoder().encode(board.build()))
    # Added here because the library's annotations lack the fields that the Prometheus source reads.
    made["annotations"] = {"list": annotations}
    return json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
