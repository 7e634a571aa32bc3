"""Digits, garments and large digits in negative: three heads on one body."""
