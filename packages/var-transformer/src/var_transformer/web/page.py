"""The page's layout and looks, in Gradio. It loads nothing from other hosts."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import gradio as gr
from fastapi import FastAPI

from var_transformer.web import limits
from var_transformer.web.canvas import make_canvas
from var_transformer.web.handlers import Handlers, chosen_index

__all__ = ["HEAD", "Handlers", "make_page", "mount"]  # Handlers, too: see above

_TITLE = "VAR"

_STYLE = """
.coarse img, .coarse canvas { image-rendering: pixelated; }
footer { display: none !important; }
#layout { display: grid; gap: var(--layout-gap); align-items: start;
  grid-template: "what work" auto "settings work" 1fr / minmax(250px, 1fr) 2.5fr; }
#what { grid-area: what; }
#work { grid-area: work; }
#settings { grid-area: settings; }
@media (max-width: 700px) {
  #layout { grid-template: "what" auto "work" auto "settings" auto / minmax(0, 1fr); }
  #pictures .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
.min_value, .max_value { color: var(--body-text-color-subdued) !important; }
.dark { color-scheme: dark; }
#canvas .or { color: var(--neutral-600) !important; }
.dark button[role=tab][aria-selected=true] { color: var(--primary-300) !important; }
#class input { padding-right: 2.2em; text-overflow: ellipsis; }
#pictures .caption-label, #pictures .caption { display: none; }
"""

# for assistive software; Gradio has no arguments for it
HEAD = (
    f"<title>{_TITLE}</title>"
    """<script>
new MutationObserver(() => {
  const set = (selector, attributes) => {
    for (const element of document.querySelectorAll(selector))
      for (const [name, value] of Object.entries(attributes))
        if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  for (const element of document.querySelectorAll("[aria-controls], [data-controls]")) {
    const id = (element.dataset.controls ??= element.getAttribute("aria-controls"));
    if (document.getElementById(id)) element.setAttribute("aria-controls", id);
    else element.removeAttribute("aria-controls");  // that list is closed
  }
  set("#status", { role: "status", "aria-live": "polite" });
}).observe(document.documentElement, { childList: true, subtree: true });
</script>"""
)


def make_page(handlers: Handlers) -> gr.Blocks:
    """The page whose buttons call ``handlers``."""
    with gr.Blocks(
        title=_TITLE,
        analytics_enabled=False,
        delete_cache=(600, limits.KEPT_SECONDS),
        fill_width=False,
    ) as page:
        gr.Markdown("# VAR\nPictures by next-scale prediction: each is drawn coarse to fine.")
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="what", min_width=0):
                label = gr.Dropdown(
                    handlers.choices,
                    value=handlers.choices[0][1],
                    label="Class",
                    allow_custom_value=True,
                    elem_id="class",
                )
            with gr.Column(elem_id="work", min_width=0):
                with gr.Tabs(elem_id="tabs") as tabs:
                    with gr.Tab("New", id="new"):
                        draw = gr.Button("Generate", variant="primary", elem_id="generate")
                    with gr.Tab("Edit", id="edit"):
                        gr.Markdown(
                            "Paint over what is to be redrawn. "
                            "What the picture leaves empty is redrawn, too."
                        )
                        canvas = make_canvas(handlers.size)
                        redraw = gr.Button("Redraw", variant="primary", elem_id="redraw")
                status = gr.Markdown(label="Status", elem_id="status", min_height=28)
                pictures = gr.Gallery(
                    label="Pictures",
                    show_label=False,
                    format="png",
                    columns=4,
                    object_fit="contain",
                    height=400,
                    buttons=["fullscreen"],
                    interactive=False,
                    elem_id="pictures",
                    elem_classes=canvas.elem_classes,
                )
                with gr.Row():
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                    download = gr.DownloadButton("Download", interactive=False, elem_id="download")
                    to_canvas = gr.Button("Take to the editor", elem_id="to-canvas")
            with gr.Column(elem_id="settings", min_width=0):
                images = gr.Slider(
                    1, handlers.max_images, 1, step=1, label="How many", elem_id="count"
                )
                seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                cfg = gr.Slider(0, 10, 1.5, step=0.1, label="Guidance", elem_id="guidance")
                with gr.Accordion("Sampler", open=False):
                    top_k = gr.Number(0, label="Top k (0 for all)", precision=0, elem_id="top-k")
                    top_p = gr.Slider(
                        0, 1, 0, step=0.01, label="Top p (0 for all)", elem_id="top-p"
                    )
                    temperature = gr.Slider(
                        0.1, 2, 1, step=0.05, label="Temperature", elem_id="temperature"
                    )
                    more_smooth = gr.Checkbox(False, label="More smooth", elem_id="more-smooth")
        settings = [label, images, seed, cfg, top_k, top_p, temperature, more_smooth]
        drawn, chosen = (gr.State(value, time_to_live=limits.KEPT_SECONDS) for value in (None, 0))

        outputs = [pictures, status, download, drawn, chosen]
        models = {
            "preprocess": False,  # the handlers check values themselves, and say what is wrong
            "concurrency_id": "models",
            "concurrency_limit": 1,
            "show_progress_on": status,
        }
        own = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        jobs = []
        for button, function, inputs, name in (
            (draw, handlers.generate, settings, "generate"),
            (redraw, handlers.redraw, [canvas, *settings], "redraw"),
        ):
            # first, because the browser sends the calls of one click in order
            button.click(lambda: gr.Button(interactive=True), None, stop, **own)
            jobs.append(button.click(function, inputs, outputs, api_name=name, **models))
            jobs[-1].then(handlers.ended, drawn, [stop, download], **own)
        stop.click(
            lambda: ("Stopped.", gr.Button(interactive=False)),
            None,
            [status, stop],
            cancels=jobs,
            **own,
        )
        pictures.select(chosen_index, None, chosen, **own)
        # first the tab: a hidden canvas takes no picture
        to_canvas.click(lambda: gr.Tabs(selected="edit"), None, tabs, **own).success(
            handlers.to_canvas, [drawn, chosen], canvas, **own
        )
    page.queue(max_size=limits.MAX_WAITING, api_open=False)
    page.state_session_capacity = limits.MAX_SESSIONS
    handlers.sessions.queue = page._queue
    return page


def mount(page: gr.Blocks) -> FastAPI:
    """The page as an ASGI application, to be reached only through a ``Guard``."""
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        "/",
        app_kwargs={"openapi_url": None, "title": _TITLE},
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size=limits.MAX_UPLOAD,
        footer_links=[],
        theme=_theme(),
        css=_STYLE,
    )
    page.has_launched = True  # makes Gradio check paths, too
    return app


def _theme() -> gr.themes.Base:
    """Gradio's own theme, with a text contrast of at least 4.5 to 1."""
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        font=["system-ui", "sans-serif"],
        font_mono=["monospace"],
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        slider_color="*primary_700",
    )
