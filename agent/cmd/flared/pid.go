package main

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
)

// defaultPidFile is the name of the file in the data directory.
const defaultPidFile = "flared.pid"

// writePid writes this process's id to a file; remove takes it away again, unless
// another process has written its own meanwhile.
func writePid(path string) (remove func(), err error) {
	line := strconv.Itoa(os.Getpid()) + "\n"
	if err := os.WriteFile(path, []byte(line), 0o644); err != nil {
		return nil, err
	}
	return func() {
		if text, err := os.ReadFile(path); errors.Is(err, fs.ErrNotExist) || err == nil && string(text) != line {
			return
		}
		os.Remove(path)
	}, nil
}
