"""Attributions to look at.

heatmap     in a terminal
page        in a browser: one file, no network
spans       tokens that stand for the same characters
terminal    text on its way to people
"""
