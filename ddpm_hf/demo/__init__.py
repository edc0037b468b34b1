"""A page in the browser that samples a model, interpolates and inpaints with it, and shows how it works.

Only `page` and what it assembles need gradio; the rest is the work behind the buttons.
"""
