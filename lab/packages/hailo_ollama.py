#!/usr/bin/python3 -I
"""EMULATION for the lab: hailo-ollama 5.1.1. Not written yet."""
