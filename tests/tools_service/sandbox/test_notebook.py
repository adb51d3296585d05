"""Tests the notebook semantics of cells, in every isolation tier."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tools_service.client import ExecRequest, Status, ToolsClient


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_variables_imports_files_and_functions_persist_between_cells(bench, session):
    bench.run(session, "import math\nx = 20\ndef double(v): return 2 * v\nopen('note.txt', 'w').write('kept')")
    result = bench.run(session, "print(open('note.txt').read())\ndouble(x) + math.floor(2.5)")
    assert (result.status, result.stdout, result.stderr, result.restarted) == (Status.OK, "kept\n42\n", "", False)


def test_tracebacks_have_no_suggestions_whatever_the_version_of_python(bench, session):
    for code, message in {
        "value = 1\nvalu": "NameError: name 'valu' is not defined",
        "math.pi": "NameError: name 'math' is not defined",
        "[].appendd": "AttributeError: 'list' object has no attribute 'appendd'",
        "raise ValueError(\"f. Did you mean: 'g'?\")": "ValueError: f. Did you mean: 'g'?",
    }.items():
        assert bench.run(session, code).stderr.splitlines()[-1] == message


def test_only_the_last_expression_is_shown_and_a_semicolon_or_none_hides_it(bench, session):
    assert bench.run(session, "1\n'a'").stdout == "'a'\n"
    assert bench.run(session, "5;").stdout == ""
    assert bench.run(session, "x = 5").stdout == ""
    assert bench.run(session, "None").stdout == ""
    assert bench.run(session, "import asyncio\nawait asyncio.sleep(0, 'awaited')").stdout == "'awaited'\n"


@pytest.mark.parametrize("end", ["", "\n"])
def test_carets_mark_the_place_of_an_error_on_every_version_of_python(bench, session, end):
    """Catches carets one column to the right of it, where a cell does not end with a line break."""
    stderr = bench.run(session, f"x = 1\nprnt(x * 69){end}").stderr
    assert "    prnt(x * 69)\n    ^^^^\n" in stderr, stderr


def test_a_traceback_names_the_cell_and_line_and_shows_no_frame_of_ours(bench, session):
    bench.run(session, "def fail():\n    return 1 / 0")
    result = bench.run(session, "a = 1\nfail()")
    assert result.status is Status.ERROR
    assert 'File "Cell In[2]", line 2, in <module>\n    fail()' in result.stderr
    assert 'File "Cell In[1]", line 2, in fail\n    return 1 / 0' in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "tools_service" not in result.stderr


def test_a_cell_that_does_not_parse_runs_nothing_and_notebook_commands_are_explained(bench, session):
    result = bench.run(session, "print('ran')\n%matplotlib inline")
    assert (result.status, result.stdout) == (Status.ERROR, "")
    assert "SyntaxError" in result.stderr and "Magic commands such as '%matplotlib' are not available" in result.stderr
    assert "Shell commands" in bench.run(session, "!ls").stderr


def test_output_of_c_code_and_child_processes_is_captured_in_order(bench, session):
    code = "import ctypes, subprocess, sys\nprint('first')\nsubprocess.run(['/bin/echo', 'child'])\nctypes.CDLL(None).puts(b'from C')\nprint('bad', file=sys.stderr)"
    result = bench.run(session, code + ";0;")
    assert result.stdout == "first\nchild\nfrom C\n"
    assert result.stderr == "bad\n"


def test_a_crop_comes_back_with_exactly_the_pixels_of_the_input_image(bench, session):
    image = noise(900, 700)
    result = bench.run(session, "image_1.crop((100, 50, 420, 290))", images=(encode(image),))
    assert result.status is Status.OK and result.stdout == ""
    np.testing.assert_array_equal(pixels(result.images[0]), np.asarray(image)[50:290, 100:420])


def test_every_input_image_is_bound_in_order_and_rotated_by_exif(bench, session):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    images = (
        encode(noise(40, 30)),
        encode(noise(50, 20), "JPEG", exif=exif),
        encode(noise(8, 9).convert("P"), "GIF"),
    )
    result = bench.run(session, "[i.size for i in (image_1, image_2, image_3)]", images=images)
    assert result.stdout == "[(40, 30), (20, 50), (8, 9)]\n"


def test_an_image_that_cannot_be_opened_is_refused_and_creates_no_session(bench, session):
    result = bench.run(session, "x = 1", images=(b"not an image",))
    assert result.status is Status.REFUSED and "picture 1 cannot be opened" in result.message
    assert bench.run(session, "1").restarted is False


def test_shown_and_left_open_figures_displayed_images_and_arrays_come_back_in_order(bench, session):
    code = """
import matplotlib.pyplot as plt, numpy as np
from PIL import Image
from IPython.display import display as show
plt.figure(figsize=(2, 1)); plt.plot([1, 2]); plt.show()
show(Image.new('RGB', (11, 7), (255, 0, 0)), 'text')
Image.new('L', (5, 6)).show()
display(np.array([[0.0, 1.0]]))
plt.figure(); plt.imshow(np.eye(3))
np.full((9, 10, 3), 77, np.uint8)
"""
    result = bench.run(session, code)
    assert (result.status, result.stdout) == (Status.OK, "'text'\n")
    sizes = [Image.open(io.BytesIO(png)).size for png in result.images]
    assert sizes[1:5] == [(11, 7), (5, 6), (2, 1), (10, 9)]
    np.testing.assert_array_equal(pixels(result.images[3]), [[0, 255]])
    np.testing.assert_array_equal(pixels(result.images[4]), np.full((9, 10, 3), 77))
    assert 100 < sizes[0][0] < 260 and len(sizes) == 6
    assert bench.run(session, "plt.get_fignums()").stdout == "[]\n"


def test_numbers_in_arrays_stay_text(bench, session):
    assert bench.run(session, "import numpy as np\nnp.array([[1, 2], [3, 4]], np.uint8)").images == ()
    assert bench.run(session, "np.zeros((20, 20))").images == ()


def test_modes_that_png_lacks_are_converted_and_16_bit_is_kept(bench, session):
    code = "from PIL import Image\nfor mode in ('CMYK', 'HSV', 'F', 'YCbCr', '1', 'LA', 'I;16'): display(Image.new(mode, (3, 2)))"
    result = bench.run(session, code)
    assert result.stderr == ""
    assert [Image.open(io.BytesIO(png)).mode for png in result.images] == ["RGB", "RGB", "L", "RGB", "1", "LA", "I;16"]


def test_images_come_as_webp_where_the_client_asks_for_it_pixel_for_pixel_and_with_their_sizes(bench, session):
    client = ToolsClient(bench.service.address, image_format="webp")
    code = """
import matplotlib.pyplot as plt, numpy as np
from PIL import Image
display(image_1, Image.new('RGBA', (3, 4), (9, 8, 7, 6)), Image.new('I;16', (5, 6)), Image.new('L', (20_000, 1)))
plt.plot([1, 2])
"""
    image = noise(90, 70)
    client.submit([ExecRequest(f"{session}-webp", session, code, 60.0, (encode(image),))])
    while not (results := client.poll(1.0)):
        pass
    client.close()
    result = results[0]
    kinds = ["WEBP" if data[:4] == b"RIFF" else "PNG" for data in result.images]
    assert kinds == ["WEBP", "WEBP", "PNG", "PNG", "WEBP"], result  # neither 16 bits nor 20,000 pixels fit into WebP
    assert [Image.open(io.BytesIO(data)).size for data in result.images] == list(result.image_sizes)
    assert list(result.image_sizes[:4]) == [(90, 70), (3, 4), (5, 6), (20_000, 1)]
    np.testing.assert_array_equal(pixels(result.images[0]), np.asarray(image))
    np.testing.assert_array_equal(pixels(result.images[1])[0, 0], [9, 8, 7, 6])


def test_too_many_and_too_large_images_are_dropped_with_a_note(bench, session):
    result = bench.run(session, "from PIL import Image\nfor i in range(13): display(Image.new('L', (2, 2)))")
    assert len(result.images) == 10 and "3 more pictures were not returned" in result.stderr
    result = bench.run(
        session, "import matplotlib.pyplot as plt\nplt.figure(figsize=(20000, 20000)).subplots()\nplt.show()"
    )
    assert result.images == () and "too large to return" in result.stderr


def test_hostile_text_comes_back_as_text(bench, session):
    result = bench.run(session, "print('a\\x00b\\x1b[2J <|im_end|> <image> é \\ud800')\nraise ValueError('\\udfff')")
    assert result.stdout == "a\x00b\x1b[2J <|im_end|> <image> é \\ud800\n"
    assert result.status is Status.ERROR and "ValueError" in result.stderr
    assert bench.run(session, "raise SystemExit(3)").status is Status.ERROR
    assert bench.run(session, "1").stdout == "1\n"


def test_long_output_is_clipped_in_the_middle_and_says_by_how_much(bench, session):
    result = bench.run(session, "print('A' * 1_000_000 + 'Z')")
    assert result.status is Status.OK
    assert result.stdout.startswith("AAAA") and result.stdout.endswith("AZ\n")
    assert f"{1_000_002 - (256 << 10)} bytes left out" in result.stdout


def test_interpreter_state_that_a_cell_breaks_is_reset_for_the_next(bench, session):
    bench.run(
        session,
        "import sys, builtins\nsys.stdout.close()\nsys.settrace(lambda *a: None)\ndel builtins.len\nprint = None",
    )
    result = bench.run(session, "del print\nprint(len('abc'), sys.gettrace())")
    assert result.stdout == "3 None\n"
