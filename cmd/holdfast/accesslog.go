package main

import (
	"fmt"
	"os"
	"sync"
)

// accessLog is the file of an access log. It may be renamed while it is written to, as logrotate does: the next lines go
// into a new file of its name. It is written to in batches, once a second or less often when nothing happens.
type accessLog struct {
	path string

	// mu guards the fields below, and is held while the file is written to.
	mu   sync.Mutex
	file *os.File
}

// openAccessLog opens a file, or standard output if path is "-".
func openAccessLog(path string) (*accessLog, error) {
	if path == "-" {
		return &accessLog{file: os.Stdout}, nil
	}
	l := &accessLog{path: path}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return l, nil
}

func (l *accessLog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	if l.file != nil {
		_ = l.file.Close() // all of it was written
	}
	l.file = f
	return nil
}

// Write appends to the file that has the name now.
func (l *accessLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path != "" && l.moved() {
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	return l.file.Write(b)
}

func (l *accessLog) moved() bool {
	is, err := l.file.Stat()
	if err != nil {
		return true
	}
	named, err := os.Stat(l.path)
	return err != nil || !os.SameFile(is, named)
}

func (l *accessLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "" {
		return nil
	}
	return l.file.Close()
}
