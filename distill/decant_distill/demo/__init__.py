"""The bundled worlds: two generators of problems, a tokenizer, a teacher and a student base, so that the
loop needs no download.
"""
