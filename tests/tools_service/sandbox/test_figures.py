"""Tests figures, warnings, fonts and the stand-in for IPython in cells, in every isolation tier."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from tools_service.client import Status
from tools_service.sandbox.worker import fonts

IMPORTS = "import matplotlib.pyplot as plt, warnings\n"
EMPTY_FIGURE = "<Figure size 640x480 with 0 Axes>\n"
BROKEN = "plt.figure(); plt.title('$\\\\frac{$')\n"  # mathtext that does not parse, noticed when the figure is drawn


@pytest.mark.parametrize(
    ("code", "images", "stdout"),
    [
        ("plt.plot([1, 2]); plt.show(); plt.savefig('o.png')", 1, EMPTY_FIGURE),
        ("plt.figure(); plt.subplots();", 1, EMPTY_FIGURE),
        ("plt.figure();", 0, EMPTY_FIGURE),
        ("fig = plt.figure(); plt.show(); fig", 0, EMPTY_FIGURE * 2),
        ("fig = plt.figure(); plt.close(); display(fig)", 0, EMPTY_FIGURE),
        ("fig = plt.figure(); plt.close(); fig.show()", 0, EMPTY_FIGURE),
        ("plt.figure().subfigures(1, 2);", 0, EMPTY_FIGURE),
        ("plt.figure().subfigures(1, 2)[0].subplots();", 1, ""),
        ("plt.figure().suptitle('only a title');", 1, ""),
        ("plt.figure().text(0.5, 0.5, 'only text');", 1, ""),
        ("plt.subplots(); plt.axis('off');", 1, ""),
    ],
)
def test_a_figure_without_content_is_text_and_no_image(bench, session, code, images, stdout):
    """Catches a white image for the figure that `plt.savefig` creates after `plt.show`, and a lost figure of text."""
    result = bench.run(session, IMPORTS + code)
    assert (result.status, len(result.images), result.stdout) == (Status.OK, images, stdout), result.stderr


@pytest.mark.parametrize("show", ["plt.show()", "", "fig.show()", "display(fig)"])
def test_a_figure_that_cannot_be_drawn_costs_one_traceback(bench, session, show):
    """Catches a broken figure that ends the cell or takes along the figures after it."""
    code = f"{IMPORTS}{BROKEN}fig = plt.gcf()\nplt.figure(figsize=(2, 1)); plt.plot([1, 2])\n{show}\nprint('after')"
    result = bench.run(session, code)
    assert (result.status, result.stdout, len(result.images)) == (Status.ERROR, "after\n", 1)
    assert result.stderr.startswith("figure could not be shown:\nTraceback (most recent call last):\n")
    assert result.stderr.count("Traceback") == 1 and "ParseSyntaxException" in result.stderr
    assert "tools_service" not in result.stderr
    assert bench.run(session, "plt.plot([1, 2]);").status is Status.OK


def test_an_image_that_cannot_be_encoded_does_not_end_the_cell(bench, session):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()[:4000]  # a truncated file opens, and its pixels cannot be decoded
    code = f"import io\nfrom PIL import Image\ndisplay(Image.open(io.BytesIO({data!r})))\ndisplay(Image.new('L', (9, 8)))\nprint('after')"
    result = bench.run(session, code)
    assert (result.status, result.stdout, len(result.images)) == (Status.ERROR, "after\n", 1)
    assert "picture could not be shown" in result.stderr and "truncated" in result.stderr


def test_a_callback_of_the_cell_that_fails_while_drawing_is_named_with_its_line(bench, session):
    code = (
        IMPORTS + "plt.plot([1, 2])\ndef label(x, pos):\n    return 1 / 0\nplt.gca().xaxis.set_major_formatter(label)"
    )
    result = bench.run(session, code)
    assert result.status is Status.ERROR
    assert 'File "Cell In[1]", line 4, in label\n    return 1 / 0' in result.stderr


def test_warnings_name_the_cell_and_never_a_file_of_the_service(bench, session):
    """Catches `.../tools_service/sandbox/worker/display.py:181: UserWarning` in what the policy reads."""
    log_axis = "plt.subplots(); plt.yscale('log'); plt.plot([0, 0])"
    result = bench.run(session, f"{IMPORTS}{log_axis}\nwarnings.warn('from above', stacklevel=2)\nplt.show()")
    assert result.status is Status.OK and len(result.images) == 1
    assert "Cell In[1]: UserWarning: from above\n" in result.stderr
    assert "UserWarning: Data has no positive values" in result.stderr
    assert "tools_service" not in result.stderr
    result = bench.run(session, "warnings.warn('here')")
    assert result.stderr == "Cell In[2]:1: UserWarning: here\n  warnings.warn('here')\n"
    result = bench.run(
        session, "with warnings.catch_warnings(record=True) as caught:\n    warnings.warn('kept')\nlen(caught)"
    )
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_letters_without_a_font_are_named_once_per_session(bench, session):
    """Catches one warning per letter, and boxes without a word. U+0378 is unassigned: no font has it."""
    draw = IMPORTS + "plt.title('Łódź, Αθήνα, Москва, القاهرة \\u0378\\u0379');"
    result = bench.run(session, draw)
    assert (result.status, len(result.images)) == (Status.OK, 1)
    assert result.stderr == (
        "no installed font has \u0378 \u0379: figures show boxes instead; write these labels in Latin letters\n"
    )
    assert bench.run(session, draw).stderr == ""
    many = bench.run(session, "plt.title(''.join(map(chr, range(0x2fe0, 0x2ff0))));")
    assert "and 6 more characters" in many.stderr and many.stderr.count("\n") == 1


def test_a_font_that_is_not_installed_is_named_once(bench, session):
    """Catches one line per text and layout pass, 340 for this figure, in what the policy reads."""
    result = bench.run(session, IMPORTS + "plt.rcParams['font.family'] = 'SimHei'\nplt.plot([1, 2]);")
    assert (result.status, len(result.images)) == (Status.OK, 1)
    assert result.stderr == "findfont: Font family 'SimHei' not found.\n"


def write_font(path, family: str, letters: str) -> None:
    """Writes a TrueType font whose `letters` are filled squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"uni{ord(letter):04X}" for letter in letters})
    builder.setupGlyf({name: pen.glyph() for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200, usWeightClass=400)
    builder.setupPost()
    builder.save(path)


def pixels_of(text: str) -> np.ndarray:
    """Renders text with matplotlib's current settings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def test_an_installed_font_with_more_letters_is_used_after_the_default(tmp_path, monkeypatch, recwarn):
    """Catches a font that sessions cannot read, one that adds nothing, and boxes although a font is installed."""
    import matplotlib
    from matplotlib import font_manager

    manager = font_manager.fontManager
    own, installed = tmp_path / "own", tmp_path / "installed"
    for folder in (own, installed):
        folder.mkdir()
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    monkeypatch.setattr(logging.getLogger(font_manager.__name__), "filters", [])
    write_font(own / "hidden.ttf", "Noto Sans Hidden", "国あ한ह")
    manager.addfont(own / "hidden.ttf")
    fonts_of_image = {"Noto Sans Test": "ไह", "Another Thai": "ไ", "Test Kanji": "国あ法", "Test Latin": "Ab"}
    for family, letters in fonts_of_image.items():
        write_font(installed / f"{family}.ttf", family, letters)
    (installed / "broken.ttf").write_bytes(b"no font")
    (installed / "linked.ttf").symlink_to(own / "hidden.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in installed.iterdir()])
    folders = [str(installed), str(matplotlib.get_data_path())]
    with matplotlib.rc_context():
        monkeypatch.setitem(matplotlib.rcParamsDefault, "font.family", ["sans-serif"])
        latin = pixels_of("A label")
        assert fonts.set_up_fonts(folders) == ["Test Kanji", "Noto Sans Test"]
        assert not {"Noto Sans Hidden"} & {font.name for font in manager.ttflist}
        assert matplotlib.rcParamsDefault["font.family"] == [
            "sans-serif",
            "DejaVu Sans",
            "Test Kanji",
            "Noto Sans Test",
        ]
        np.testing.assert_array_equal(pixels_of("A label"), latin)
        matplotlib.rcParams["font.sans-serif"] = ["SimHei"]  # as much code for Chinese labels does
        np.testing.assert_array_equal(pixels_of("A label"), latin)
        pixels_of("法国Aไ")
    assert not [w for w in recwarn if "missing from font" in str(w.message)]


def test_every_font_that_matplotlib_lists_can_be_read_in_a_session(bench, session):
    """Catches a listed font outside the session's root: a figure with it would end in FileNotFoundError."""
    code = "from matplotlib import font_manager as fm\nfiles = {font.fname for font in fm.fontManager.ttflist}\n"
    result = bench.run(session, code + "print(len(files) > 30, [f for f in files if not open(f, 'rb').read(4)])")
    assert (result.status, result.stdout) == (Status.OK, "True []\n"), result.stderr


def test_text_and_images_of_ipython_display_are_shown(bench, session):
    code = """
from IPython.display import HTML, JSON, Markdown, Latex, Image, SVG, Code, clear_output, display, update_display
import PIL.Image
PIL.Image.new('RGB', (12, 7)).save('o.png')
clear_output(wait=True)
display(Markdown('**bold**'), HTML('<b>b</b>'), Latex('$x$'), Image('o.png'), Image(filename='o.png', width=40))
display(Image(data=open('o.png', 'rb').read()))
handle = display('a', display_id=True)
handle.update('b')
display(JSON({'a': 'é'}))
HTML(data='<i>last</i>')
"""
    result = bench.run(session, code)
    assert (result.status, result.stderr) == (Status.OK, "")
    assert result.stdout == "**bold**\n<b>b</b>\n$x$\n'a'\n'b'\n{\n  \"a\": \"é\"\n}\n<i>last</i>\n"
    assert [Image.open(io.BytesIO(png)).size for png in result.images] == [(12, 7)] * 3
    other = bench.run(
        session, "import IPython\nfrom IPython.core.display import HTML, display\nIPython.display.display(HTML('x'))"
    )
    assert (other.status, other.stdout) == (Status.OK, "x\n")
    remote = bench.run(session, "Image(url='https://example.org/a.png')")
    assert remote.status is Status.ERROR and "the sandbox has no network" in remote.stderr
