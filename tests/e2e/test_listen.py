"""The Listen tab in a real browser: fresh pairs, nothing that names a model before the vote, the vote, the result."""

import re

import pytest

from studio import wording
from studio.store import Store

from .conftest import settled

pytestmark = pytest.mark.browser


def go(page) -> None:
    page.click("role=tab[name=Listen]")
    page.wait_for_selector(".tm-trial, #tm-stage .tm-empty:not(:has-text('Preparing'))")


def listen(page, side: str) -> None:
    page.click(f"[data-side={side}] .tm-play")
    page.wait_for_function(
        """side => {
            const trial = document.querySelector('.tm-trial');
            return window.tmListened(trial)[side] >= trial.dataset.needed;
        }""",
        arg=side,
    )


def test_fresh_pairs_are_judged_blind_and_add_up(open_page, studio):
    page = open_page(width=390, height=844, theme="dark")
    go(page)
    assert "There is no pair to judge yet" in page.inner_text("#tm-stage")
    assert "No votes yet" in page.inner_text("#tm-results")
    page.click("#tm-fresh")
    page.wait_for_selector('#tm-making:has-text("Clip 1 of 3")')
    page.wait_for_selector(".tm-trial[data-pair]")

    # Nothing on the page tells which is which: not the text, not the addresses, not the Compare tab's history.
    whole = page.content().lower()
    pair = page.get_attribute(".tm-trial", "data-pair")
    stage = page.inner_html("#tm-stage").lower()
    for model in wording.MODELS:
        assert model not in stage
        assert f"_{model}_seed" not in whole
    assert re.findall(r"listening/(\w+)/([ab])\.wav", stage) == [(pair, "a"), (pair, "b")]
    assert "ms_per_step" not in stage
    assert page.locator(".tm-takes").count() == 0
    assert page.locator(".tm-trial .tm-spectrum").count() == 0

    votes = page.locator("[data-vote]")
    assert votes.evaluate_all("all => all.map(one => one.disabled)") == [True, True, True]
    listen(page, "a")
    assert votes.first.is_disabled()
    assert "more of B" in page.inner_text(".tm-hint")
    listen(page, "b")
    page.wait_for_selector("[data-vote=a]:enabled")
    page.click("[data-vote=a]")
    page.wait_for_selector(".tm-trial.is-revealed")

    (stored,) = Store(studio.folder).votes()
    assert (stored.pair, stored.choice) == (pair, "a")
    assert min(stored.heard_a_s, stored.heard_b_s) >= 3.9
    names = page.locator(".is-revealed .tm-side h3").all_inner_texts()
    assert names == [wording.model_title(stored.model_a), wording.model_title(stored.model_b)]
    assert page.locator(".is-revealed [data-figure=ms_per_step]").count() == 2
    assert "1 of 1 vote that chose a side, 100% (95% interval 21% to 100%)" in page.inner_text("#tm-results") or (
        "0 of 1 vote that chose a side, 0% (95% interval 0% to 79%)" in page.inner_text("#tm-results")
    )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    page.click("#tm-next")
    page.wait_for_selector(f'.tm-trial[data-pair]:not([data-pair="{pair}"])')
    assert not (studio.folder / "listening" / pair).exists()


def test_a_vote_outlives_the_page_and_a_pair_waits_for_it(open_page, studio):
    page = open_page()
    go(page)
    pair = page.get_attribute(".tm-trial", "data-pair")
    listen(page, "a")
    page.reload()
    settled(page)
    go(page)
    assert page.get_attribute(".tm-trial", "data-pair") == pair
    assert page.locator("[data-vote=same]").is_disabled()
    assert page.locator(".tm-result").count() == 1
    listen(page, "a")
    listen(page, "b")
    page.click("[data-vote=same]")
    page.wait_for_selector(".tm-trial.is-revealed")
    assert "no difference" in page.inner_text(".is-revealed .tm-hint")
    assert len(Store(studio.folder).votes()) == 2


def test_fresh_pairs_can_be_cancelled(open_page, studio):
    page = open_page()
    go(page)
    page.click("#tm-fresh")
    page.wait_for_selector('#tm-making:has-text("Clip 1 of 3")')
    page.click("#tm-fresh-cancel")
    page.wait_for_selector("#tm-fresh:not([disabled])")
    page.wait_for_selector("#tm-fresh-cancel", state="hidden")
    assert studio.workers() == []
