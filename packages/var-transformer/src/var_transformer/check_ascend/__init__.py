"""The first hour with an NPU: is everything as defined, and how long does it take?

    python -m var_transformer.check_ascend --out check

| file | what |
| --- | --- |
| ``definitions.py`` | operators and attention in float64, with gradients, and with mistakes |
| ``checks.py`` | a check: its error, and which mistake explains it |
| ``operator_checks.py``, ``attention_checks.py`` | what is checked |
| ``tokenizer_definitions.py``, ``tokenizer_checks.py`` | the same of the tokenizer |
| ``measurements.py`` | times of calls, of a step, of a generation |
| ``report.py`` | JSON and tables |
"""
