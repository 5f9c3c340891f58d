-- Run once, when the server's data are made: the database and its owner, who migrates it and is no superuser.
\set password `cat /run/secrets/owner`
CREATE ROLE drawdown LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE drawdown OWNER drawdown;
REVOKE ALL ON DATABASE drawdown FROM PUBLIC;
-- The superuser comes in from within this container, without a password. One that exists could be tried from outside.
ALTER ROLE postgres PASSWORD NULL;
