-- The writer inserts a batch's row itself, and wakes followers once the batch is committed: shared/ledger/append.py.
DROP FUNCTION ledger.close_batch;
