"""The compiled inner loop: parse, cut, decode, resize, draw."""
