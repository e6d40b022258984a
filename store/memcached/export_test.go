package memcached
