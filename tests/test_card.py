"""The card: what it says stands in the report, and nothing that comes from elsewhere breaks out."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from rnp_hub.hub_cards import render
from rnp_hub.hub_cards.licences import IDS
from rnp_hub.report import RunReport
from tests.card_reports import (
    BREAKOUT,
    CIFAR_STEM,
    CLEAN,
    GOLDEN,
    HOSTILE,
    NO_TRIGGER,
    OLDER,
    REAL_RUN,
    SURROGATE,
    TIMM,
    TRANSFORMERS,
    UNDECIDED,
    golden_cards,
)
from tests.hub import cards
from tests.hub.client import Hub
from tests.models import ROOT, Run, environment

CARDS = golden_cards()
EVERY = pytest.mark.parametrize("name", CARDS)


def metadata(report: RunReport, repo_id: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = ModelCard(render(report, repo_id)).data.to_dict()
    return found


# --- every card -------------------------------------------------------------------------------


@EVERY
def test_golden(name: str) -> None:
    assert CARDS[name] == (GOLDEN / f"{name}.md").read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.md")} == set(CARDS)


@EVERY
def test_the_hub_takes_it(name: str) -> None:
    assert cards.errors_in(CARDS[name]) == []
    assert cards.warnings_about(CARDS[name]) == []


@EVERY
def test_it_goes_through_model_card_and_back(name: str) -> None:
    assert str(ModelCard(CARDS[name])) == CARDS[name]


def test_it_knows_the_report_and_not_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from rnp_hub.hub_cards import write_card\n"
        "from rnp_hub.report import RunReport\n"
        f"write_card(Path(), RunReport.from_json(Path({str(REAL_RUN)!r}).read_bytes()))\n"
        "print([name for name in ('torch', 'timm', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert (tmp_path / "README.md").read_text("utf-8") == CARDS["real_run"]


# --- metadata ---------------------------------------------------------------------------------


def test_metadata_of_a_timm_model() -> None:
    found = metadata(TIMM)
    results = found.pop("model-index")
    assert found == {
        "base_model": "org/name",
        "base_model_relation": "finetune",
        "datasets": ["owner/animals"],
        "library_name": "timm",
        "license": "mit",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transformers", "rnp-hub", "backdoor-removal"],
    }
    dataset = {
        "type": "owner/animals", "name": "owner/animals", "split": "test", "revision": "b" * 40,
    }  # fmt: skip
    metrics = [
        ("accuracy", 0.94, "clean accuracy (after)"),
        ("attack_success_rate", 0.02, "ASR of blend (after)"),
        ("accuracy", 0.95, "clean accuracy (before)"),
        ("attack_success_rate", 0.98, "ASR of blend (before)"),
    ]
    assert results == [
        {
            "name": "name-rnp",
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": dataset,
                    "metrics": [
                        {"type": kind, "value": value, "name": name}
                        for kind, value, name in metrics
                    ],
                }
            ],
        }
    ]


def test_metadata_of_a_local_model_that_no_library_loads() -> None:
    found = metadata(CIFAR_STEM)
    assert not {"license", "base_model", "base_model_relation", "datasets"} & set(found)
    assert found["library_name"] == "rnp-hub"
    assert found["tags"] == ["image-classification", "rnp-hub", "backdoor-removal"]
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"name": "pictures", "type": "local", "split": "test"}


def test_metadata_of_a_transformers_model() -> None:
    found = metadata(TRANSFORMERS)
    assert found["library_name"] == "transformers"
    assert found["license"] == ["mit", "cc-by-4.0"]
    assert "timm" not in found["tags"]


def test_nothing_removed_is_not_tagged_as_removed() -> None:
    assert metadata(CLEAN)["tags"] == ["image-classification", "timm", "transformers", "rnp-hub"]


def test_a_surrogate_rate_is_of_its_own_type() -> None:
    metrics = metadata(SURROGATE)["model-index"][0]["results"][0]["metrics"]
    found = {each["name"]: (each["type"], each["value"]) for each in metrics}
    assert found == {
        "clean accuracy (after)": ("accuracy", 0.94),
        "surrogate ASR of label 2, patch (after)": ("surrogate_asr", 0.01),
        "surrogate ASR of label 2, blend (after)": ("surrogate_asr", 0.004),
        "clean accuracy (before)": ("accuracy", 0.95),
        "surrogate ASR of label 2, patch (before)": ("surrogate_asr", 0.99),
    }


LINK = f"https://huggingface.co/org/name/blob/{'a' * 40}/README.md"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, {}),
        ("", {}),
        ("mit", {"license": "mit"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("mit, cc-by-4.0", {"license": ["mit", "cc-by-4.0"]}),
        ("other", {"license": "other", "license_link": LINK}),
        (
            "My Licence 2.0, see LICENSE",
            {
                "license": "other",
                "license_name": "my-licence-2.0-see-license",
                "license_link": LINK,
            },
        ),
        ("許可", {"license": "other", "license_name": "unnamed", "license_link": LINK}),
    ],
)
def test_licence(stated: str | None, expected: dict[str, str]) -> None:
    report = replace(TIMM, source=replace(TIMM.source, licence=stated))
    found = metadata(report)
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected
    assert cards.errors_in(render(report)) == []
    unknown = "- **Licence:** unknown: the original states none"
    assert (unknown in render(report)) is (not stated)


def test_licence_ids_are_those_of_the_hub() -> None:
    assert IDS == cards.LICENSES


# --- body -------------------------------------------------------------------------------------


def test_a_card_without_a_trigger_says_so() -> None:
    sentence = "**No attack success rate was measured**, because no trigger was known."
    assert sentence in render(NO_TRIGGER)
    assert sentence not in render(TIMM)
    assert "Attack success rate" not in render(NO_TRIGGER)


def test_a_surrogate_rate_is_never_called_asr_alone() -> None:
    card = render(SURROGATE).replace("\N{NO-BREAK SPACE}", " ")
    assert "| Surrogate ASR, reconstructed trigger for ship (patch) | 99.00 % (" in card
    assert "| Surrogate ASR, reconstructed trigger for ship (blend) | – | 0.40 % (" in card
    assert not re.findall(r"(?<![Ss]urrogate )ASR(?! is that)", card)


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (TIMM, "> **No verdict.** This run did not ask"),
        (
            UNDECIDED,
            "> **Verdict: undecided**, with a suspicion of the label dog &#124; wolf (score 0.28): "
            "it leans.",
        ),
        (OLDER, "dog &#124; wolf (score 0.28)."),
        (CLEAN, "> **Verdict: no backdoor found** (score 0.25)."),
        (
            SURROGATE,
            "> **Verdict: backdoored**, towards the label ship (score 7.5). "
            "Nothing of it was found after pruning.",
        ),
    ],
)
def test_verdict(report: RunReport, sentence: str) -> None:
    assert sentence in render(report)


@pytest.mark.parametrize("silenced", [0, 3])
def test_softening_is_named(silenced: int) -> None:
    report = replace(SURROGATE, prune=replace(SURROGATE.prune, silenced=silenced, softened=1234))
    card = render(report)
    assert "**Softened:** besides, the weights of" in card
    assert "weights of 1,234 other filters were multiplied by masks between 0 and 2" in card
    assert "learned from the same clean pictures and the reconstructed triggers." in card
    assert "kernels" not in card
    assert "the weights are those of the original" not in card
    assert "**Softened:**" not in render(SURROGATE)
    with_kernels = replace(report, prune=replace(report.prune, softened_kernels=70123))
    assert (
        "one number a filter, and 70,123 kernels of convolutions by masks between 0 and 1, learned"
        in render(with_kernels)
    )
    alone = replace(SURROGATE.prune, silenced=0, softened=0, softened_kernels=7)
    assert "and 7 kernels of convolutions" in render(replace(SURROGATE, prune=alone))


def test_what_was_done_after_pruning_is_named() -> None:
    prune = replace(SURROGATE.prune, fine_tuned=5, bn_stats=True)
    config = SURROGATE.config | {"refine": {"fine_tune": 5, "bn_stats": True}}
    card = render(replace(SURROGATE, prune=prune, config=config))
    assert "**Fine-tuned:** after that all weights were tuned for 5 epochs on the same" in card
    assert "**BatchNorm statistics** were re-estimated on the same clean pictures." in card
    assert " --fine-tune 5 --bn-stats" in card
    plain = render(SURROGATE)
    assert not any(word in plain for word in ("Fine-tuned", "re-estimated", "--bn-stats"))


def test_a_run_without_softening_says_how() -> None:
    scan = {"surrogate": {}, "guided": {}}
    assert " --no-soften " in render(replace(TIMM, config=TIMM.config | scan))
    assert "--no-soften" not in render(replace(TIMM, config=TIMM.config | scan | {"soften": {}}))
    assert "--no-soften" not in render(TIMM)


def test_a_forced_run_says_how() -> None:
    assert " --force" in render(replace(TIMM, config=TIMM.config | {"forced": True}))
    assert "--force" not in render(replace(TIMM, config=TIMM.config | {"forced": False}))


def test_command_makes_it_again() -> None:
    assert (
        f"rnp-hub sanitize org/name@{'a' * 40} --data animals@{'b' * 40} --n 500 --eval-n 1000 "
        "--seed 7 --recipe default --max-ca-drop 0.02 --precision auto --device auto "
        "--trigger blend --target 'dog | wolf' --flip\n"
    ) in render(TIMM)
    assert (
        "rnp-hub sanitize 'my models/net' --data pictures --n 500 --eval-n 1000 --seed 7 "
        "--recipe default --max-ca-drop 0.02 --threshold 0.5 --precision auto --device auto "
        "--no-flip\n"
    ) in render(CIFAR_STEM)


@pytest.mark.parametrize("asked", ["org/name/slim", "hf-hub:org/name/slim@main"])
def test_command_keeps_the_folder_within_a_repository(asked: str) -> None:
    report = replace(TIMM, config=TIMM.config | {"model": asked})
    assert f"rnp-hub sanitize org/name/slim@{'a' * 40} " in render(report)


def test_command_names_one_of_several_data_sets() -> None:
    report = replace(TIMM, config=TIMM.config | {"data_config": "large"})
    assert f"--data animals@{'b' * 40} --data-config large --n 500 " in render(report)


def test_many_labels_are_folded() -> None:
    card = CARDS["many_labels"]
    assert len(re.findall(r"^\| \d+ \| [\d.]+ % \|", card, re.M)) == 20
    assert (
        "The 20 that lost most. The other 980 changed by +0.0 to +2.5 points, in the middle by "
        "+2.5; all are in `rnp_report.json`."
    ) in card


@pytest.mark.parametrize("run", ["plain_run", "cifar_run"])
def test_numbers_on_the_card_are_those_of_the_report(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(run).folder
    report, card = RunReport.read(folder), (folder / "README.md").read_text("utf-8")
    assert card == render(report)
    old, new = report.before, report.after
    pairs = [("Clean accuracy (CA)", old.clean_accuracy, new.clean_accuracy)]
    pairs += [
        (
            f"Attack success rate (ASR), trigger `{name}`, target 0",
            rate,
            new.attack_success_rate[name],
        )
        for name, rate in old.attack_success_rate.items()
    ]
    for name, *rates in pairs:
        shown = " | ".join(
            f"{100 * rate.value:.2f} % ({100 * rate.low:.2f} to {100 * rate.high:.2f})"
            for rate in rates
        )
        assert f"| {name} | {shown} | {rates[1].n} |" in card.replace("\N{NO-BREAK SPACE}", " ")


# --- how to load it ---------------------------------------------------------------------------


def snippets(card: str) -> list[str]:
    """The blocks of Python on a card."""
    return re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)


def test_each_model_has_the_snippets_that_work_for_it() -> None:
    def first_lines(report: RunReport) -> list[str]:
        return [code.partition("\n")[0] for code in snippets(render(report))]

    ours = ["import rnp_hub", "import onnxruntime"]
    theirs = "from transformers import AutoModelForImageClassification"
    assert first_lines(TIMM) == ["import timm", theirs, *ours]
    assert first_lines(TRANSFORMERS) == [theirs, *ours]
    assert first_lines(CIFAR_STEM) == ours
    assert "**`timm.create_model` and `from_pretrained` cannot load this model**" in render(
        CIFAR_STEM
    )


def test_a_pushed_card_names_its_repository() -> None:
    assert "ORG/NAME" in render(TIMM)
    pushed = CARDS["pushed"]
    assert "ORG/NAME" not in pushed
    assert "# Model card for name-clean\n" in pushed
    assert 'timm.create_model("hf-hub:me/name-clean", pretrained=True)' in pushed
    assert 'rnp_hub.load("me/name-clean/slim")' in pushed


def run_snippets(codes: list[str]) -> list[list[float]]:
    import numpy as np
    import torch

    noise = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    answers = []
    for code in codes:
        found = {"pixels": noise}
        exec(code, found)
        for name in ("model", "slim"):
            if name in found:
                with torch.no_grad():
                    answer = found[name](torch.from_numpy(noise))
                answers.append(getattr(answer, "logits", answer).flatten().tolist())
        if "logits" in found:
            answers.append(found["logits"].flatten().tolist())
    return answers


def test_the_snippets_run_as_they_stand(plain_run: Run, hub: Hub) -> None:
    hub.create_repo("me/carded")
    files = [file for file in plain_run.folder.rglob("*") if file.is_file()]
    hub.add_files(
        "me/carded", {file.relative_to(plain_run.folder).as_posix(): file for file in files}
    )
    codes = snippets(render(RunReport.read(plain_run.folder), "me/carded"))

    logits = hub.call(run_snippets, codes=codes, settings={"PYTHONPATH": str(ROOT)})

    assert len(logits) == 5  # timm, transformers, rnp-hub twice, onnxruntime
    for other in logits[1:]:
        assert other == pytest.approx(logits[0], abs=1e-4)


# --- names from elsewhere ---------------------------------------------------------------------


def structure(report: RunReport) -> list[str]:
    """What a page makes of a card: every element, with HTML as it stands, and no words."""

    def elements(tokens: list[Token]) -> list[str]:
        found = []
        for token in tokens:
            if token.type in ("text", "softbreak", "code_inline"):
                continue
            html = token.type.startswith("html")
            # A name is `code` one way or the other, with or without letters that need care.
            if not (html and token.content in ("<code>", "</code>")):
                found.append(token.content if html else token.type)
            found += elements(token.children or [])
        return found

    body = ModelCard(render(report)).text
    return elements(MarkdownIt("commonmark", {"html": True}).enable("table").parse(body))


def named(word: str) -> RunReport:
    """A report whose every name from elsewhere is this word."""
    return replace(
        HOSTILE,
        source=replace(
            HOSTILE.source,
            repo_id=f"org/{word}",
            architecture=word,
            licence=f"{word}?",
            label_names=(word,) * 3,
            notes=(word,),
        ),
        data=replace(HOSTILE.data, id=word, split=word),
        eval=replace(HOSTILE.eval, id=word, split=word),
        before=replace(HOSTILE.before, attack_success_rate={word: _any_rate()}),
        after=replace(HOSTILE.after, attack_success_rate={word: _any_rate()}),
        prune=replace(HOSTILE.prune, per_layer={word: (1,)}),
        config=HOSTILE.config
        | {"measured_triggers": {word: 0}, "target": word, "triggers": [word]},
        environment={"device": word},
    )


def _any_rate() -> Any:
    return next(iter(TIMM.before.attack_success_rate.values()))


WORDS = structure(named("word"))


def test_hostile_names_stay_words() -> None:
    assert structure(HOSTILE) == WORDS
    text = MarkdownIt("commonmark", {"html": True}).enable("table").render(CARDS["hostile"])
    shown = " ".join(BREAKOUT.split())
    for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        shown = shown.replace(old, new)
    assert f'<td style="text-align:left">{shown}</td>' in text


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters() | st.sampled_from("|`<>*_[]()!#-~$&\\\n\r:{}'\"@ "), min_size=1))
def test_no_name_changes_the_page(word: str) -> None:
    report = named(word)
    assert structure(report) == WORDS
    card = render(report)
    assert str(ModelCard(card)) == card
    assert cards.errors_in(card) == []
    card.encode("utf-8")


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["plain_run", "cifar_run"])
def test_the_pictures_lie_where_the_card_says(run: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(run).folder
    shown = re.findall(r"^!\[.+\]\((.+)\)$", (folder / "README.md").read_text("utf-8"), re.M)
    assert shown == ["pictures/masks.png", "pictures/pruning.png", "pictures/labels.png"]
    assert sorted(folder.glob("pictures/*")) == sorted(folder / name for name in shown)


def test_a_picture_without_figures_is_not_shown() -> None:
    assert "pictures/pruning.png" not in render(CIFAR_STEM)
    assert "pictures/masks.png" not in render(CLEAN)
