// Command onggi is the command line of Onggi: Docker's verbs and flags, with
// short start-up and errors that say what to try.
package main

func main() {}
