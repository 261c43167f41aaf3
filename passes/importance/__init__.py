"""Importance passes: how much does each channel matter?"""
