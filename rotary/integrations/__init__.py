"""Where `rotary` meets other people's pipelines: modules of frameworks, models, exported graphs.

Each file belongs to one library and is imported by name alone, ``rotary.integrations.torch``;
nothing else in `rotary` imports it.  They hold no mathematics: they hand over arguments.
"""
