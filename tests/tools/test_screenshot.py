import pytest

from tools import screenshot


def test_no_browser_and_no_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(screenshot, "find_chromium", lambda: None)
    page = tmp_path / "a.html"
    page.write_text("<p>x</p>")
    assert screenshot.main([str(page), str(tmp_path / "a.png")]) == 2
    assert "no Chromium found as chromium, chromium-browser" in capsys.readouterr().err
    monkeypatch.setattr(screenshot, "find_chromium", lambda: "true")
    assert screenshot.main([str(tmp_path / "none.html"), str(tmp_path / "a.png")]) == 2
    assert "no page" in capsys.readouterr().err
    assert screenshot.main([str(page), str(tmp_path / "a.png")]) == 2
    assert "made no picture" in capsys.readouterr().err
    monkeypatch.setattr(screenshot, "find_chromium", lambda: "false")
    with pytest.raises(ValueError, match="ended with status 1"):
        screenshot.run_chromium(page, [])


def test_the_browser_of_the_environment_comes_first(tmp_path, monkeypatch):
    browser = tmp_path / "my-browser"
    browser.write_text("#!/bin/sh\nsleep 9\n")
    browser.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(browser))
    assert screenshot.find_chromium() == str(browser)
    page = tmp_path / "a.html"
    page.write_text("<p>x</p>")
    with pytest.raises(ValueError, match=r"did not finish within 0\.2 s"):
        screenshot.run_chromium(page, [], timeout_s=0.2)
