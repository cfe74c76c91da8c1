"""How a model is asked: to choose, to guess a last word, to write, to read on. Each way gives columns of figures.

Templates are Python's: `Question: {question}\\nAnswer:` takes the item's field; `{option}` is each of its options.
"""

from gpt2.evaluate.measures.base import Ask, Measured, Setting, Shots
from gpt2.evaluate.measures.choose import Choose
from gpt2.evaluate.measures.last_word import LastWord
from gpt2.evaluate.measures.read_on import Document, ReadOn
from gpt2.evaluate.measures.write import ByLibrary, Score, Write, mean

__all__ = [
    "Ask",
    "ByLibrary",
    "Choose",
    "Document",
    "LastWord",
    "Measured",
    "ReadOn",
    "Score",
    "Setting",
    "Shots",
    "Write",
    "mean",
]
