"""The book's settings; `nanosd_lib.studies.book` prepares the pages and calls Sphinx."""

from nanosd_lib.studies.book import mathml

project = "NanoSD Notebooks"
copyright = "the authors; Apache-2.0"
html_title = "NanoSD Notebooks"
extensions = ["myst_nb"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # a page's widgets are figures here: no script, no request
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_extra_path = ["extra"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which browsers forbid from a stick
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False,  # each page names its own two downloads
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "home_page_in_toc": True,
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}


def setup(app):
    app.add_html_math_renderer("mathml", (mathml.inline, None), (mathml.block, None))
