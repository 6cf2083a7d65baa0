// Package serialsh runs a command on a host of which there is no more than a root
// shell behind a serial console: with its input, its output and its exit code, as
// ssh would.
//
// This side asks and the other answers, so that the line is one's at a time. On
// the other side a small script (remote.sh) keeps the command's output in files;
// it is asked for what is new in them. All that is carried is compressed by gzip,
// whose checksum it has, and encoded in base64: kernels write on their console
// when they like, and lines lose characters. What arrives damaged, or not at all,
// is asked for again. Input goes in pieces, the next when the command has read the
// one before, of a size that the line is seen to take.
package serialsh
