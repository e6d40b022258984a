package testserver

// FreePort returns the address of a server to be started.
var FreePort = freePort
