"""Examples as the loop's batches: each step some examples, packed into rows that the model reads apart.

What a batch's `extra` holds, by kind of examples:

    text, completion   nothing
    label              "labels" and "ends", int64 (rows, S): each text's label and the place of its last token in the
                       row, -1 in both where a row holds fewer texts than S
    preference         "reference", float32 (rows,): by how many nats the reference prefers the chosen text. One pair a
                       row: the chosen one is segment 0, the rejected one segment 1; a row may be longer than the
                       context, as either text begins at position 0
"""
