package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
)

const keyBytes = 32

const makeKey = "make one with: (umask 077; openssl rand -hex 32 > KEYFILE)"

// loadKey reads a key from a file, or from the value of an environment variable. It returns nil if neither is given.
func loadKey(path, env string) ([]byte, error) {
	switch {
	case path == "" && env == "":
		return nil, nil
	case path != "" && env != "":
		return nil, fmt.Errorf("%w: the key is in --key-file and in HOLDFAST_KEY: give one of them", errUsage)
	case path == "":
		key, err := parseKey([]byte(env))
		if err != nil {
			return nil, fmt.Errorf("HOLDFAST_KEY: %w", err)
		}
		return key, nil
	}
	b, err := readSecret(path)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return key, nil
}

// readSecret reads a small file that nobody but its owner can read.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			err = p.Err // the path is said already
		}
		return nil, fmt.Errorf("%w; %s", err, makeKey)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a file")
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, fmt.Errorf("other users can use it (mode %04o): if nobody has, chmod 600 it; otherwise %s", mode, makeKey)
	}
	return io.ReadAll(io.LimitReader(f, 1<<10))
}

// parseKey reads 32 bytes: as they are, as 64 hexadecimal characters, or in base64.
func parseKey(b []byte) ([]byte, error) {
	key := b
	if text := bytes.TrimSpace(b); printable(text) {
		var err error
		switch {
		case len(text) == hex.EncodedLen(keyBytes):
			key, err = hex.AppendDecode(nil, text)
		default:
			key, err = base64.StdEncoding.AppendDecode(nil, text)
		}
		if err != nil {
			return nil, fmt.Errorf("it is not a key: want 32 random bytes, plain, in hex or in base64; %s", makeKey)
		}
	}
	if len(key) != keyBytes {
		return nil, fmt.Errorf("it holds %d bytes: want 32 random ones; %s", len(key), makeKey)
	}
	if bytes.Count(key, key[:1]) == keyBytes {
		return nil, fmt.Errorf("it is one byte repeated: want 32 random ones; %s", makeKey)
	}
	return key, nil
}

// printable reports whether b is text. 32 random bytes are not: 1 in 10^14.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}
