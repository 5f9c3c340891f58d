-- Runs once, when the server's data are created: the database, and its owner, which migrates it and is not a superuser.
\set password `cat /run/secrets/owner`
CREATE ROLE drawdown LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE drawdown OWNER drawdown;
REVOKE ALL ON DATABASE drawdown FROM PUBLIC;
-- The superuser logs in only from within this container, without a password. A password could be guessed from outside.
ALTER ROLE postgres PASSWORD NULL;
