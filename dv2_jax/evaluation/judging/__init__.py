"""Judging answers with a language model: rubrics, and a judge that stores every reply and requests none twice."""
