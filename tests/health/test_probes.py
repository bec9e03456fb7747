"""How far probes of a model are trusted."""

from inferd.health.probes import PROBE_TRUST, ProbeOutcome, ProbeTrust


def test_the_table_names_all_that_can_happen_to_a_model_that_is_asked() -> None:
    assert {key[0] for key in PROBE_TRUST} == {ProbeTrust.PROVING, ProbeTrust.TRUSTED}
    assert len(PROBE_TRUST) == 2 * len(ProbeOutcome)
